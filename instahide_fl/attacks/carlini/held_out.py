"""Whether decoded images mean anything, tested on encodings that were held out.

An encoding that was held out is explained by the likeliest images of its classes, and
by the likeliest of the same images mirrored. Images of nothing are as good mirrored;
those of the client are not.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from instahide_fl.attacks.carlini.decoding_problem import Problem
from instahide_fl.attacks.carlini.hypotheses import likely_links
from instahide_fl.attacks.carlini.matching_pursuit import PublicPart

MIN_EVIDENCE = 4.0  # standard deviations; chance exceeds it once in 30,000 times
DOUBT = 0.3  # variance of an image's error, at least: too sure ones decide all else


def evidence(
    problem: Problem, images: Tensor, errors: Tensor, public: PublicPart
) -> float:
    """Return by how much images explain encodings better than mirrored ones.

    Args:
        problem: encodings that were held out, without a prior.
        images: f32[n,C,H,W], decoded without them.
        errors: f32[n], variance of a pixel of each image's error.
        public: the public part of these encodings, found without the images.

    Returns:
        The standardised statistic of Wilcoxon's signed-rank test of the gains in
        log-likelihood; 0 if there are not two encodings.
    """
    from scipy.stats import wilcoxon

    if len(problem) < 2:
        return 0.0
    doubted = errors.clamp_min(DOUBT)
    own, mirrored = (
        _best_fit(problem, one.flatten(1), doubted, public)
        for one in (images, images.flip(3))
    )
    gain = (own - mirrored).double().numpy()
    if not gain.any():
        return 0.0
    found = wilcoxon(gain, alternative="greater", method="approx")
    return float(found.zstatistic)


def _best_fit(
    problem: Problem, images: Tensor, errors: Tensor, public: PublicPart
) -> Tensor:
    start = problem.prior.argmax(2)  # any image of the class
    _, scores = likely_links(problem, images, start, errors, public)
    return scores[:, 0]


def without_prior(problem: Problem) -> Problem:
    """Return the problem with nothing known of its links but the classes."""
    allowed = problem.prior.isfinite()
    nothing = torch.zeros_like(problem.prior).masked_fill(~allowed, float("-inf"))
    return replace(problem, prior=nothing)
