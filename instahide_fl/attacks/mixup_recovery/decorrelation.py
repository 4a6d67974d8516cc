"""Decorrelation of pixels by what public images look like."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.config import EncoderConfig
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.mixing import draw_coefficients, draw_distinct

MAX_IMAGES = 5000  # of the pool, or mixtures of them
DIRECTIONS = 400
MIN_PER_DIRECTION = 4  # images; with fewer, variances are mostly chance


def public_sample(
    pool: MixingPool, config: EncoderConfig, folded: bool, rng: np.random.Generator
) -> Tensor:
    """Return public images as encodings show them.

    Args:
        pool: the public images.
        config: k, and the law of coefficients.
        folded: whether only magnitudes of encodings are known: magnitudes of mixtures
            of public images are returned then.
        rng: draws which images, and how they are mixed.

    Returns:
        f32[M,C,H,W], normalised.
    """
    count = min(MAX_IMAGES, len(pool))
    chosen = torch.from_numpy(np.sort(rng.permutation(len(pool))[:count]))
    images = pool.statistics.normalise(pool.images[chosen])
    if not folded:
        return images
    mixed = min(config.num_mixed, count)
    weights = draw_coefficients(count, config, rng)
    parts = draw_distinct(count, mixed, count, rng)
    total = torch.zeros_like(images)
    for part, weight in zip(parts.T, weights.T, strict=False):
        total.addcmul_(images[part], weight[:, None, None, None])
    return total.abs()


def decorrelating(images: Tensor) -> NDArray[np.float64]:
    """Return the linear map that makes pixels of such images white.

    Args:
        images: f32[M,C,H,W].

    Returns:
        f64[D,r]: the r strongest principal directions, each divided by its deviation.
    """
    values = images.flatten(1).numpy().astype(np.float64)
    variances, directions = np.linalg.eigh(np.cov(values.T))
    kept = min(DIRECTIONS, max(1, len(values) // MIN_PER_DIRECTION), len(variances))
    variances = np.maximum(variances[-kept:], 1e-6 * variances[-1])
    return np.asarray(directions[:, -kept:] / np.sqrt(variances))
