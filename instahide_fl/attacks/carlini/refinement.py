"""Images, public parts and links, each from the other two, in turn.

Source: our own. Decoded images tell which links fit (by the likelihood of an encoding,
summed over its unknown signs), and let more of the public images be found; both leave
less noise for the next decoding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import ProgressCallback, scale_progress
from instahide_fl.attacks.carlini.decoding_problem import DecodingProblem
from instahide_fl.attacks.carlini.hypotheses import likely_links
from instahide_fl.attacks.carlini.matching_pursuit import (
    PublicMatchingPursuit,
    PublicPart,
)
from instahide_fl.attacks.decoding.choice import choose_decoder, decode
from instahide_fl.attacks.decoding.least_squares import alternating_minimisation
from instahide_fl.attacks.decoding.sign_coherence import coherent_signs

DECODED_SHARE = 0.7  # of the encodings, those whose links lead most
DECODING_ROUNDS = 10
FIRST_ERROR = 0.3  # variance of a pixel's error in the first images
MIN_ERROR, MAX_ERROR = 0.01, 1.0
SETTLED_SHARE = 0.01  # of the links: if fewer change, refinement stops


@dataclass(frozen=True)
class JointEstimate:
    """What is believed of images, links and public parts together.

    Attributes:
        images: f32[n,C,H,W], normalised.
        errors: f32[n], the estimated variance of a pixel's error in each image.
        links: i64[M,p], the image of each label entry.
        margins: f32[M], how much likelier links are than the next ones, in nats.
        public: The public part.
        rounds: The number of rounds of refinement so far.
    """

    images: Tensor
    errors: Tensor
    links: Tensor
    margins: Tensor
    public: PublicPart
    rounds: int


def refine(
    problem: DecodingProblem,
    links: Tensor,
    margins: Tensor,
    public: PublicPart,
    pursuit: PublicMatchingPursuit | None,
    rounds: int,
    rng: np.random.Generator,
    progress: ProgressCallback,
) -> JointEstimate:
    """Decode, and alternate between public parts, links and images.

    Args:
        problem: The encodings.
        links: i64[M,p], the links by clustering.
        margins: f32[M], how sure these links are.
        public: The public part, as far as it is known.
        pursuit: The search of the pool; None if the pool is not searched.
        rounds: The largest number of rounds; it stops where links change no more.
        rng: The generator of the first decoding's start.
        progress: The callback told how far the refinement is.
    """
    images = _first_images(
        problem=problem,
        links=links,
        margins=margins,
        public=public,
        rng=rng,
        progress=scale_progress(progress, 0, rounds + 1),
    )
    errors = torch.full((len(images),), FIRST_ERROR)
    estimate = JointEstimate(
        images=images,
        errors=errors,
        links=links,
        margins=margins,
        public=public,
        rounds=0,
    )
    for number in range(1, rounds + 1):
        before = estimate.links
        estimate = refine_once(problem, estimate, pursuit)
        progress(number + 1, rounds + 1)
        changed = float((estimate.links != before).float().mean())
        # Not after the first round: its images were decoded with the very links that
        # it judges, and so agree with them.
        if changed < SETTLED_SHARE and number > 1:
            break
    return estimate


def refine_once(
    problem: DecodingProblem,
    estimate: JointEstimate,
    pursuit: PublicMatchingPursuit | None,
) -> JointEstimate:
    """Return the next estimate: public parts, links, and images from these.

    Args:
        problem: The encodings.
        estimate: What is believed so far.
        pursuit: The search of the pool; None if the pool is not searched.
    """
    flat = estimate.images.flatten(1)  # [n,C,H,W] -> [n,D]
    public = estimate.public
    if pursuit is not None:
        public = pursuit.search_given_private(
            problem.encodings,
            problem.coefficients,
            problem.private_part(flat, estimate.links),
            problem.private_variance(estimate.errors, estimate.links),
        )
    hypotheses, scores = likely_links(
        problem, flat, estimate.links, estimate.errors, public
    )
    links, margins = hypotheses[:, 0], scores[:, 0] - scores[:, 1]
    rows = leading(margins, DECODED_SHARE)
    surest, surest_public = problem.rows(rows), public.rows(rows)
    remainder = unexplained(surest, flat, links[rows], surest_public)
    # A wrong link leaves more than was expected: its encoding counts the less.
    doubted = replace(
        surest_public, variance=torch.maximum(surest_public.variance, remainder)
    )
    images = alternating_minimisation(
        surest.mixtures(links[rows], doubted),
        estimate.images,
        problem.largest_pixel,
        DECODING_ROUNDS,
    )
    if not surest_public.has_images:  # which would tell the sign of each pixel
        images = images * coherent_signs(images)
    errors = image_errors(surest, images.flatten(1), links[rows], surest_public)
    return JointEstimate(
        images=images,
        errors=errors,
        links=links,
        margins=margins,
        public=public,
        rounds=estimate.rounds + 1,
    )


def _first_images(
    problem: DecodingProblem,
    links: Tensor,
    margins: Tensor,
    public: PublicPart,
    rng: np.random.Generator,
    progress: ProgressCallback,
) -> Tensor:
    """Decode for the first time, from the surest links."""
    rows = leading(margins, DECODED_SHARE)
    mixtures = problem.rows(rows).mixtures(links[rows], public.rows(rows))
    decoder = choose_decoder(mixtures, flipped=True)
    return decode(mixtures, decoder, rng, problem.largest_pixel, progress=progress)


def image_errors(
    problem: DecodingProblem, images: Tensor, links: Tensor, public: PublicPart
) -> Tensor:
    """Estimate the variance of each image's error from what encodings leave over.

    What an encoding leaves over is the errors of its images, times their squared
    coefficients: a least-squares problem whose solutions are not negative.

    Args:
        problem: The encodings.
        images: f32[n,D].
        links: i64[M,p], the image of each label entry.
        public: The public part, as far as it is known.

    Returns:
        f32[n], the variance of a pixel's error.
    """
    from scipy.optimize import nnls

    excess = unexplained(problem, images, links, public) - public.variance
    squares = torch.zeros(len(links), len(images), dtype=torch.float64)
    # [M,p] -> [M,n]: the squared coefficient of each image in each encoding
    squares.scatter_add_(1, links, problem.coefficients.double().square())
    weights = 1 / (public.variance.double() + MIN_ERROR)
    errors, _ = nnls(
        (squares * weights[:, None]).numpy(),
        (excess.clamp_min(0).double() * weights).numpy(),
    )
    in_any = squares.sum(0) > 0
    estimated = torch.from_numpy(errors).float().clamp(MIN_ERROR, MAX_ERROR)
    return torch.where(in_any, estimated, MAX_ERROR)


def unexplained(
    problem: DecodingProblem, images: Tensor, links: Tensor, public: PublicPart
) -> Tensor:
    """Return the mean square of each encoding's unexplained pixels.

    Args:
        problem: The encodings.
        images: f32[n,D].
        links: i64[M,p], the image of each label entry.
        public: The public part, as far as it is known.

    Returns:
        f32[M].
    """
    explained = (problem.private_part(images, links) + public.total).abs()
    return (problem.magnitudes - explained).square().mean(1)


def leading(margins: Tensor, share: float) -> Tensor:
    """Return the rows of the largest margins, ascending.

    Args:
        margins: f32[M].
        share: The share of the rows to return, 0..1.
    """
    order = margins.argsort(descending=True, stable=True)
    # Sorted again: sums over encodings, and so their rounding, keep their order.
    return order[: max(1, round(share * len(margins)))].sort().values
