"""Whether decoded images mean anything, tested on encodings that were held out.

An encoding that was held out is explained by the likeliest images of its classes, and
by the likeliest of the same images mirrored. Images of nothing are as good mirrored;
those of the client are not.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from instahide_fl.attacks.clustering.hypotheses import likely_links
from instahide_fl.attacks.clustering.problem import Problem
from instahide_fl.attacks.clustering.public_pursuit import PublicPart

LEAST_EVIDENCE = 4.0  # standard errors; chance exceeds it once in 30,000 times


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
        The mean gain of log-likelihood, in standard errors; 0 if there are not two
        encodings.
    """
    if len(problem) < 2:
        return 0.0
    fits = [
        _best_fit(problem, one.flatten(1), errors, public)
        for one in (images, images.flip(3))
    ]
    gain = (fits[0] - fits[1]).double()
    return float(gain.mean() / (gain.std() / len(gain) ** 0.5).clamp_min(1e-12))


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
