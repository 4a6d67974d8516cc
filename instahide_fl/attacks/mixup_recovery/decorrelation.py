"""Decorrelate pixels by the covariance of public images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.config import EncoderConfig
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.mixing import draw_coefficients, draw_distinct

MAX_IMAGES = 5000  # images of the pool, or mixtures of them
MAX_DIRECTIONS = 400
MIN_PER_DIRECTION = 4  # images; with fewer, variances are mostly chance


def public_sample(
    pool: MixingPool, config: EncoderConfig, folded: bool, rng: np.random.Generator
) -> Tensor:
    """Return public images as encodings show them.

    Args:
        pool: The public images.
        config: k, and the distribution of coefficients.
        folded: Whether a mask hides the signs of encodings; absolute values of mixtures
            of public images are returned then.
        rng: The generator that chooses images and mixes them.

    Returns:
        Images or absolute values of mixtures, normalised, f32[M,C,H,W].
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
    """Return the linear map that whitens the pixels of images like these.

    Args:
        images: a sample of images, f32[M,C,H,W].

    Returns:
        The r strongest principal directions, each divided by the standard deviation
        along it, f64[D,r].
    """
    values = images.flatten(1).numpy().astype(np.float64)  # [M,C,H,W] -> [M,D]
    variances, directions = np.linalg.eigh(np.cov(values.T))
    by_sample = max(1, len(values) // MIN_PER_DIRECTION)
    rank = min(MAX_DIRECTIONS, by_sample, len(variances))
    variances = np.maximum(variances[-rank:], 1e-6 * variances[-1])
    return np.asarray(directions[:, -rank:] / np.sqrt(variances))
