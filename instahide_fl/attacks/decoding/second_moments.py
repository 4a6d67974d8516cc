"""Decoding by second moments: products of private pixels survive the sign mask.

The square of an encoded pixel does not depend on its sign, and its mean is

    sum_i l_i^2 x_i^2  +  sum_{i != j} l_i l_j x_i x_j  +  variance of the public part.

The middle term tells of products of two images. Over all encodings these products fill
a sparse n x n matrix close to x x', whose leading eigenvector is x up to its sign.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import ProgressCallback, ignore_progress, scale_progress
from instahide_fl.attacks.decoding.least_squares import (
    ITERATIONS,
    alternating_minimisation,
)
from instahide_fl.attacks.decoding.mixtures import Mixtures, gram, sparse_rows
from instahide_fl.attacks.decoding.sign_coherence import coherent_signs
from instahide_fl.errors import AttackError

POWER_ITERATIONS = 40
DAMPING = 1e-3  # of the regression, times the mean of its diagonal
# The smoothing at the start of each pass of the alternation; 2/3 is the plain mean of
# 3 x 3 pixels. The first pass has none: few encodings leave many signs wrong, and
# smoothing before most of them are right would spread the errors.
SMOOTHING = (0.0, 2 / 3, 2 / 3)


def second_moments(
    mixtures: Mixtures,
    rng: np.random.Generator,
    pixel_bound: Tensor | None = None,
    iterations: int = ITERATIONS,
    progress: ProgressCallback = ignore_progress,
) -> Tensor:
    """Decode encodings with random signs and an unknown public part.

    The leading vectors are found pixel by pixel. Then signs that make neighbours agree
    and alternating minimisation follow each other three times, and signs once more.

    Args:
        mixtures: The encodings, each of at least two private images.
        rng: The generator that starts the power iteration.
        pixel_bound: The largest magnitude of a pixel, f32[C]; None for no limit.
        iterations: The number of iterations of each of the three alternations.
        progress: The callback told how far the decoding is.

    Returns:
        f32[n,C,H,W], normalised, up to one sign for all pixels of all images.

    Raises:
        AttackError: Encodings have one private image, or the public part is known.
    """
    if mixtures.components.shape[1] < 2:
        raise AttackError(
            "second moments need encodings of at least two private images, these have "
            "one: use folded-least-squares"
        )
    if mixtures.public is not None:
        raise AttackError(
            "second moments do not use a known public part: folded-least-squares does, "
            "and is nearly exact with it"
        )
    images = leading_vectors(mixtures, rng)
    for number, smoothing in enumerate(SMOOTHING):
        images = alternating_minimisation(
            mixtures,
            images * coherent_signs(images),
            pixel_bound,
            iterations,
            smoothing,
            start_variance=1,
            progress=scale_progress(progress, number, len(SMOOTHING)),
        )
    return images * coherent_signs(images)


def leading_vectors(
    mixtures: Mixtures, rng: np.random.Generator, iterations: int = POWER_ITERATIONS
) -> Tensor:
    """Estimate each pixel of the images from second moments, by power iteration.

    Args:
        mixtures: The encodings.
        rng: The generator of the starting vectors.
        iterations: The number of iterations of the power method.

    Returns:
        f32[n,C,H,W], normalised; each pixel has a sign of its own for all n images.
    """
    products, squares = separate_products(mixtures)
    mixing = mixtures.mixing
    transposed = mixing.t().coalesce()
    # For each pixel with products r, A' diag(r) A holds products of two images off its
    # diagonal. The diagonal is not one of those, so the iteration leaves it out.
    diagonal = _squared(transposed) @ products
    start = rng.standard_normal(diagonal.shape, np.float32)
    vectors = torch.from_numpy(start).to(products.device)
    for _ in range(iterations):
        vectors = transposed @ (products * (mixing @ vectors)) - diagonal * vectors
        vectors /= vectors.norm(dim=0).clamp_min(1e-12)
    size = squares.clamp_min(0).sum(0).sqrt()
    return (vectors * size).view(mixtures.images_shape)


def separate_products(mixtures: Mixtures) -> tuple[Tensor, Tensor]:
    """Regress squared pixels on what single images and public parts contribute.

    Args:
        mixtures: The encodings.

    Returns:
        The remainder, an estimate of sum_{i != j} l_i l_j x_i x_j: f32[E,D]; and the
        squares x_i^2: f32[n,D], some of which may come out negative.
    """
    squared = mixtures.encodings.flatten(1).square()
    noise = mixtures.public_variance
    # Columns 0 and 1 are the intercept and the public part; those of images follow.
    offsets = torch.stack([torch.ones_like(noise), noise], 1)  # [E] twice -> [E,2]
    offset_columns = torch.tensor([0, 1], device=noise.device).expand(len(noise), 2)
    columns = torch.cat([offset_columns, mixtures.components + 2], 1)  # [E,2+p]
    values = torch.cat([offsets, mixtures.weights.square()], 1)  # [E,2+p]
    design = sparse_rows(columns, values, mixtures.count + 2)
    normal = gram(columns, values, values, mixtures.count + 2)
    normal.diagonal().add_(DAMPING * normal.diagonal().mean())
    solution = torch.linalg.solve(normal, design.t() @ squared)  # [2+n,D]
    return squared - design @ solution, solution[2:]


def _squared(matrix: Tensor) -> Tensor:
    values = matrix.values().square()
    return torch.sparse_coo_tensor(
        matrix.indices(), values, matrix.shape, check_invariants=True
    )
