"""Inner loops of registration, compiled by numba.

In the loops `e` is an encoding, `q` a position and `d` a pixel, as in the shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function compiled to machine code."""
    # Here and not above: importing numba takes a while.
    import numba

    machine_code: Callable[..., Any] = numba.njit(
        nogil=True, fastmath=True, cache=True
    )(function)
    return machine_code


def misfits(
    values: Floats,
    rest: Floats,
    weights: Floats,
    noise: Floats,
    moved: Floats,
    folded: bool,
) -> Floats:
    """Return how badly each position of an image fits each encoding.

    That is minus the log-likelihood, times twice the variance of the noise, up to what
    all positions share. In place of log cosh z stands sqrt(1 + z^2), which is faster
    and as good.

    Args:
        values: f32[M,D], the encodings, or their magnitudes.
        rest: f32[M,D], what is expected of everything but the image.
        weights: f32[M], the coefficients of the image.
        noise: f32[M], the variance of what is unknown.
        moved: f32[Q,D], the image in each position.
        folded: Whether values are magnitudes.

    Returns:
        f32[M,Q].
    """
    out = np.empty((len(values), len(moved)), np.float32)
    for e in range(len(values)):
        variance = noise[e] * noise[e]
        for q in range(len(moved)):
            total = np.float32(0)
            for d in range(values.shape[1]):
                mean = rest[e, d] + weights[e] * moved[q, d]
                agreement = mean * values[e, d]
                if folded:
                    agreement = np.sqrt(agreement * agreement + variance)
                total += mean * mean - np.float32(2) * agreement
            out[e, q] = total
    return out


def collect(
    values: Floats,
    rest: Floats,
    weights: Floats,
    noise: Floats,
    moved: Floats,
    sources: Indices,
    candidates: Indices,
    posterior: Floats,
    folded: bool,
) -> tuple[Floats, Floats]:
    """Sum the encodings' residuals, moved back to the image's own pixels.

    A residual is an encoding without what is expected of other images. It is weighted
    by the coefficient, the inverse variance and the probability of the position.

    Args:
        values: f32[M,D], the encodings, or their magnitudes.
        rest: f32[M,D], what is expected of everything but the image.
        weights: f32[M], the coefficients of the image.
        noise: f32[M], the variance of what is unknown.
        moved: f32[Q,D], the image in each position.
        sources: i64[Q,P], which pixel of the image each pixel shows; -1 for none.
        candidates: i64[M,c], the likeliest positions.
        posterior: f32[M,c], the probabilities of these positions.
        folded: Whether values are magnitudes.

    Returns:
        The right-hand sides f32[D] and the weights f32[P] of a least-squares problem.
    """
    pixels = sources.shape[1]
    total = np.zeros(values.shape[1], np.float32)
    certainty = np.zeros(pixels, np.float32)
    for e in range(len(values)):
        for c in range(candidates.shape[1]):
            q = candidates[e, c]
            share = posterior[e, c] * weights[e] / noise[e]
            for d in range(values.shape[1]):
                source = sources[q, d % pixels]  # channels follow each other: d = c*P+p
                if source < 0:
                    continue
                value = values[e, d]
                if folded:
                    mean = rest[e, d] + weights[e] * moved[q, d]
                    value *= np.tanh(mean * value / noise[e])
                total[d - d % pixels + source] += share * (value - rest[e, d])
                if d < pixels:  # once: all channels of a pixel have the same weight
                    certainty[source] += share * weights[e]
    return total, certainty
