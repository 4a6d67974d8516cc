"""The held-out test: whether decoded images mean anything.

Some encodings take no part in clustering and decoding. Each of them is explained by the
likeliest images of its classes, and by the likeliest of the same images mirrored.
Images that the attack made up explain it no better than their mirror images; images of
the client do.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from instahide_fl.attacks.carlini.decoding_problem import DecodingProblem
from instahide_fl.attacks.carlini.hypotheses import likely_links
from instahide_fl.attacks.carlini.matching_pursuit import PublicPart

# Standard deviations; chance exceeds it once in 30,000 times.
MIN_HELD_OUT_STATISTIC = 4.0
# Least variance of an image's error. Errors are estimated on encodings that the images
# were fitted to, so they are too small; an image that is trusted too much would decide
# every comparison alone.
MIN_ERROR = 0.3


def held_out_statistic(
    problem: DecodingProblem, images: Tensor, errors: Tensor, public: PublicPart
) -> float:
    """Return by how much images explain encodings better than mirrored ones.

    Args:
        problem: Held-out encodings, without a prior (see `without_prior`): the prior
            would prefer the same links for the images and for the mirrored ones.
        images: f32[n,C,H,W], decoded without these encodings.
        errors: f32[n], the variance of a pixel's error in each image.
        public: The public part of these encodings, found without the images.

    Returns:
        The standardised statistic of Wilcoxon's signed-rank test of the gains in
        log-likelihood; 0 if there are not two encodings.
    """
    from scipy.stats import wilcoxon

    if len(problem) < 2:
        return 0.0
    trusted_errors = errors.clamp_min(MIN_ERROR)
    plain, mirrored = (
        _best_fit(problem, version.flatten(1), trusted_errors, public)
        for version in (images, images.flip(3))
    )
    gain = (plain - mirrored).double().numpy()
    if not gain.any():
        return 0.0
    test = wilcoxon(gain, alternative="greater", method="approx")
    return float(test.zstatistic)


def _best_fit(
    problem: DecodingProblem, images: Tensor, errors: Tensor, public: PublicPart
) -> Tensor:
    start = problem.prior.argmax(2)  # any image of the class
    _, scores = likely_links(problem, images, start, errors, public)
    return scores[:, 0]


def without_prior(problem: DecodingProblem) -> DecodingProblem:
    """Return the problem with nothing known of its links but the classes."""
    allowed = problem.prior.isfinite()
    flat = torch.zeros_like(problem.prior).masked_fill(~allowed, float("-inf"))
    return replace(problem, prior=flat)
