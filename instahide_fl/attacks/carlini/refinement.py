"""Images, public parts and links, each from the other two, in turn.

Source: our own. Decoded images tell which links fit (the likelihood of an encoding,
summed over its unknown signs), and let more of the public images be found; both leave
less noise for the next decoding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import ProgressCallback, scale_progress
from instahide_fl.attacks.carlini.decoding_problem import Problem
from instahide_fl.attacks.carlini.hypotheses import likely_links
from instahide_fl.attacks.carlini.matching_pursuit import PublicPart, PublicPursuit
from instahide_fl.attacks.decoding.choice import choose_decoder, decode
from instahide_fl.attacks.decoding.least_squares import alternating_minimisation
from instahide_fl.attacks.decoding.sign_coherence import coherent_signs

KEPT = 0.7  # of the encodings, those whose links lead most
DECODING_ROUNDS = 10
FIRST_ERROR = 0.3  # variance of errors of the first images, per pixel
MIN_ERROR, MAX_ERROR = 0.01, 1.0
SETTLED = 0.01  # share of links: if fewer change, nothing does any more


@dataclass(frozen=True)
class Refined:
    """What refinement arrived at.

    Attributes:
        images: f32[n,C,H,W], normalised.
        errors: f32[n], what is thought to be the variance of each image's error.
        links: i64[M,p].
        margins: f32[M], how much likelier links are than the next ones, in nats.
        public: the public part.
        rounds: how many there were.
    """

    images: Tensor
    errors: Tensor
    links: Tensor
    margins: Tensor
    public: PublicPart
    rounds: int


def refine(
    problem: Problem,
    links: Tensor,
    margins: Tensor,
    public: PublicPart,
    pursuit: PublicPursuit | None,
    rounds: int,
    rng: np.random.Generator,
    progress: ProgressCallback,
) -> Refined:
    """Decode, and alternate between public parts, links and images.

    Args:
        problem: the encodings.
        links: i64[M,p], by clustering.
        margins: f32[M], how sure they are.
        public: the public part, as far as it is known.
        pursuit: None if the pool is not searched.
        rounds: how often, at most; less where links do not change any more.
        rng: starts the first decoding.
        progress: told how far it is.
    """
    first = scale_progress(progress, 0, rounds + 1)
    images = _first_images(problem, links, margins, public, rng, first)
    found = Refined(
        images, torch.full((len(images),), FIRST_ERROR), links, margins, public, 0
    )
    for number in range(1, rounds + 1):
        before = found.links
        found = improved(problem, found, pursuit)
        progress(number + 1, rounds + 1)
        if float((found.links != before).float().mean()) < SETTLED and number > 1:
            break
    return found


def improved(
    problem: Problem, found: Refined, pursuit: PublicPursuit | None
) -> Refined:
    """Return what one round arrives at: public parts, links, and images from these."""
    flat = found.images.flatten(1)
    public = found.public
    if pursuit is not None:
        mixed = problem.private(flat, found.links)
        variance = problem.private_variance(found.errors, found.links)
        weights = problem.coefficients
        public = pursuit.given(problem.encodings, weights, mixed, variance)
    hypotheses, scores = likely_links(problem, flat, found.links, found.errors, public)
    links, margins = hypotheses[:, 0], scores[:, 0] - scores[:, 1]
    kept = leading(margins, KEPT)
    some, known = problem.rows(kept), public.rows(kept)
    left = unexplained(some, flat, links[kept], known)
    # A wrong link leaves more than was expected: its encoding counts the less.
    doubted = replace(known, variance=torch.maximum(known.variance, left))
    images = alternating_minimisation(
        some.mixtures(links[kept], doubted),
        found.images,
        problem.largest,
        DECODING_ROUNDS,
    )
    if not known.found:
        images = images * coherent_signs(images)
    errors = image_errors(some, images.flatten(1), links[kept], known)
    return Refined(images, errors, links, margins, public, found.rounds + 1)


def _first_images(
    problem: Problem,
    links: Tensor,
    margins: Tensor,
    public: PublicPart,
    rng: np.random.Generator,
    progress: ProgressCallback,
) -> Tensor:
    """Decode for the first time, from the surest links."""
    kept = leading(margins, KEPT)
    mixtures = problem.rows(kept).mixtures(links[kept], public.rows(kept))
    decoder = choose_decoder(mixtures, flipped=True)
    return decode(mixtures, decoder, rng, problem.largest, progress=progress)


def image_errors(
    problem: Problem, images: Tensor, links: Tensor, public: PublicPart
) -> Tensor:
    """Estimate the variance of each image's error from what encodings leave over.

    An encoding leaves the errors of its images, times their squared coefficients: a
    least-squares problem without negative solutions.

    Args:
        problem: the encodings.
        images: f32[n,D].
        links: i64[M,p].
        public: the public part, as far as it is known.

    Returns:
        f32[n].
    """
    from scipy.optimize import nnls

    left = unexplained(problem, images, links, public) - public.variance
    squares = torch.zeros(len(links), len(images), dtype=torch.float64)
    squares.scatter_add_(1, links, problem.coefficients.double().square())
    weights = 1 / (public.variance.double() + MIN_ERROR)
    errors, _ = nnls(
        (squares * weights[:, None]).numpy(),
        (left.clamp_min(0).double() * weights).numpy(),
    )
    known = squares.sum(0) > 0
    estimated = torch.from_numpy(errors).float().clamp(MIN_ERROR, MAX_ERROR)
    return torch.where(known, estimated, MAX_ERROR)


def unexplained(
    problem: Problem, images: Tensor, links: Tensor, public: PublicPart
) -> Tensor:
    """Return the mean square of what is left of each encoding's pixels, f32[M].

    Args:
        problem: the encodings.
        images: f32[n,D].
        links: i64[M,p].
        public: the public part, as far as it is known.
    """
    explained = (problem.private(images, links) + public.total).abs()
    return (problem.magnitudes - explained).square().mean(1)


def leading(margins: Tensor, share: float) -> Tensor:
    """Return the rows of the largest margins, ascending.

    Args:
        margins: f32[M].
        share: of the rows, 0..1.
    """
    order = margins.argsort(descending=True, stable=True)
    return order[: max(1, round(share * len(margins)))].sort().values
