"""Which decoder, and running it."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from torch import Tensor

from instahide_fl.attacks.base import ProgressCallback, ignore_progress
from instahide_fl.attacks.decoding.least_squares import (
    ITERATIONS,
    folded_least_squares,
    ridge,
)
from instahide_fl.attacks.decoding.mixtures import Mixtures
from instahide_fl.attacks.decoding.second_moments import second_moments

Decoder: TypeAlias = Literal["ridge", "folded-least-squares", "second-moments"]

ENOUGH_INSIDE = 2  # encodings of each image, see docs/attacks/decode_encodings.md
ENOUGH_CROSS = 10


def choose_decoder(mixtures: Mixtures, flipped: bool) -> Decoder:
    """Return the decoder that reaches most.

    By the number T of encodings for each image, and not by how well the result explains
    the encodings: wrong signs can explain them better than the right ones.

    Args:
        mixtures: the encodings.
        flipped: whether signs were flipped.
    """
    if not flipped:
        return "ridge"
    if mixtures.public is not None or mixtures.components.shape[1] < 2:
        return "folded-least-squares"
    noisy = bool(mixtures.public_variance.max() > 0)
    enough = ENOUGH_CROSS if noisy else ENOUGH_INSIDE
    if mixtures.encodings_per_image < enough:
        return "folded-least-squares"
    return "second-moments"


def decode(
    mixtures: Mixtures,
    decoder: Decoder,
    rng: np.random.Generator,
    largest: Tensor | None = None,
    iterations: int = ITERATIONS,
    progress: ProgressCallback = ignore_progress,
) -> Tensor:
    """Decode.

    Args:
        mixtures: the encodings.
        decoder: which, see `choose_decoder`.
        rng: for second moments.
        largest: magnitude of a pixel, f32[C]; None for no limit.
        iterations: where signs are unknown.
        progress: told how far it is.

    Returns:
        f32[n,C,H,W], normalised; for signs that stay open see the decoder.

    Raises:
        AttackError: the decoder does not apply.
    """
    if decoder == "second-moments":
        return second_moments(mixtures, rng, largest, iterations, progress)
    if decoder == "folded-least-squares":
        return folded_least_squares(mixtures, largest, iterations, progress)
    images = ridge(mixtures)
    progress(iterations, iterations)
    return images
