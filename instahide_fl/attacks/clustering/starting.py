"""The first images, from links that are often wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from instahide_fl.attacks.attack import Advance
from instahide_fl.attacks.clustering.refinement import Problem, in_the_better_sign
from instahide_fl.attacks.decoding.choice import Decoder, choose_decoder, decode
from instahide_fl.attacks.decoding.sign_coherence import coherence
from instahide_fl.config import EncoderConfig
from instahide_fl.encoding.mixing import draw_coefficients

SHARES = (1.0, 0.5, 0.3)  # of the encodings, the surest ones
ITERATIONS = 25
DRAWN = 20_000  # coefficients, to learn how uneven public ones are
FLOOR = 0.02  # variance beside that of public images


def public_spread(config: EncoderConfig, rng: np.random.Generator) -> float:
    """Return the sum of squares of public coefficients over their squared sum.

    The mean of the run's law; 0 where nothing is public.
    """
    if not config.uses_pool:
        return 0.0
    public = draw_coefficients(DRAWN, config, rng)[:, config.private_count :]
    return float((public.square().sum(1) / public.sum(1).square()).mean())


def first_images(
    problem: Problem,
    links: Tensor,
    margins: Tensor,
    rng: np.random.Generator,
    advance: Advance,
) -> Tensor:
    """Decode the surest encodings, several choices of them, and take the best result.

    Wrong links hurt more than missing ones, but how much differs. With a pool to search
    the best images are those that let most of some encodings be explained; without one
    those whose neighbouring pixels agree most, as they do in pictures.

    Args:
        problem: the encodings.
        links: i64[M,p].
        margins: f32[M,p], how sure each is.
        rng: starts the decoders.
        advance: told the choices done.

    Returns:
        f32[n,C,H,W], normalised, up to one sign for all.
    """
    tried: list[Tensor] = []
    worst: list[float] = []
    attempts = list(_attempts(problem, links, margins))
    for number, (rows, decoder) in enumerate(attempts):
        mixtures = problem.mixtures(links, rows, None, problem.public_variance)
        images = decode(mixtures, decoder, rng, problem.largest, ITERATIONS)
        tried.append(images)
        worst.append(
            -coherence(images)
            if problem.search is None
            else in_the_better_sign(problem, images, links)[1]
        )
        advance(number + 1, len(attempts))
    return tried[int(np.argmin(worst))]


def _attempts(
    problem: Problem, links: Tensor, margins: Tensor
) -> Iterator[tuple[Tensor, Decoder]]:
    sure = (margins.clamp_min(0) * problem.coefficients).prod(1)
    order = (sure / (problem.public_variance + FLOOR)).argsort(
        descending=True, stable=True
    )
    for share in SHARES:
        rows = order[: max(1, round(share * len(order)))].sort().values
        mixtures = problem.mixtures(links, rows, None, problem.public_variance)
        decoder = choose_decoder(mixtures, flipped=True)
        # Folded images are no use where others can be had, and all are needed.
        if decoder == "second-moments" or share == 1.0:
            yield rows, decoder
        if decoder != "second-moments" and share == 1.0 and links.shape[1] > 1:
            yield rows, "second-moments"
