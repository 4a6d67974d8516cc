"""Choosing a decoder, and running it."""

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

# Encodings of each image from which second moments are better than folded least
# squares; measured, see docs/attacks/decode_encodings.md.
MIN_ENCODINGS_INSIDE, MIN_ENCODINGS_CROSS = 2, 10


def choose_decoder(mixtures: Mixtures, flipped: bool) -> Decoder:
    """Return the decoder that reaches most.

    The choice goes by the number T of encodings for each image, and not by how well the
    result explains the encodings: wrong signs can explain them better than the right
    ones.

    Args:
        mixtures: The encodings.
        flipped: Whether signs were flipped.
    """
    if not flipped:
        return "ridge"
    if mixtures.public is not None or mixtures.components.shape[1] < 2:
        return "folded-least-squares"
    noisy = bool(mixtures.public_variance.max() > 0)
    needed = MIN_ENCODINGS_CROSS if noisy else MIN_ENCODINGS_INSIDE
    if mixtures.encodings_per_image < needed:
        return "folded-least-squares"
    return "second-moments"


def decode(
    mixtures: Mixtures,
    decoder: Decoder,
    rng: np.random.Generator,
    pixel_bound: Tensor | None = None,
    iterations: int = ITERATIONS,
    progress: ProgressCallback = ignore_progress,
) -> Tensor:
    """Decode encodings into private images.

    Args:
        mixtures: The encodings.
        decoder: The name of the decoder, see `choose_decoder`.
        rng: The generator that starts second moments; other decoders draw nothing.
        pixel_bound: The largest magnitude of a pixel, f32[C]; None for no limit.
        iterations: The number of iterations where signs are unknown.
        progress: The callback told how far the decoding is.

    Returns:
        f32[n,C,H,W], normalised; for signs that stay open see the decoder.

    Raises:
        AttackError: The decoder does not apply.
    """
    if decoder == "second-moments":
        return second_moments(mixtures, rng, pixel_bound, iterations, progress)
    if decoder == "folded-least-squares":
        return folded_least_squares(mixtures, pixel_bound, iterations, progress)
    images = ridge(mixtures)
    progress(iterations, iterations)
    return images
