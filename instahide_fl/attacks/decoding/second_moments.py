"""Decoding by second moments: products of private pixels survive the sign mask.

The square of an encoded pixel does not depend on its sign, and its mean is

    sum_i l_i^2 x_i^2  +  sum_{i != j} l_i l_j x_i x_j  +  variance of the public part.

The middle term tells of products of two images. Over all encodings these products fill
a sparse n x n matrix close to x x', whose leading vector is x up to its sign.
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
# Of each pass of the alternation, at its start; 2/3 is the plain mean of 3 x 3 pixels.
# The first pass is without: few encodings leave many signs wrong, and smoothing before
# most of them are right would spread the errors.
SMOOTHING = (0.0, 2 / 3, 2 / 3)


def second_moments(
    mixtures: Mixtures,
    rng: np.random.Generator,
    largest: Tensor | None = None,
    iterations: int = ITERATIONS,
    progress: ProgressCallback = ignore_progress,
) -> Tensor:
    """Decode encodings with random signs and an unknown public part.

    Leading vectors pixel by pixel; then three times signs that make neighbours agree
    and alternating minimisation; and signs once more.

    Args:
        mixtures: the encodings, each of at least two private images.
        rng: starts the power iteration.
        largest: magnitude of a pixel, f32[C]; None for no limit.
        iterations: of the alternation, three times.
        progress: told how far it is.

    Returns:
        f32[n,C,H,W], normalised, up to one sign for all pixels of all images.

    Raises:
        AttackError: encodings have one private image, or the public part is known.
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
            largest,
            iterations,
            smoothing,
            doubt=1,
            progress=scale_progress(progress, number, len(SMOOTHING)),
        )
    return images * coherent_signs(images)


def leading_vectors(
    mixtures: Mixtures, rng: np.random.Generator, iterations: int = POWER_ITERATIONS
) -> Tensor:
    """Estimate each pixel of the images from second moments, by power iteration.

    Args:
        mixtures: the encodings.
        rng: of the start.
        iterations: of the power method.

    Returns:
        f32[n,C,H,W], normalised; each pixel has a sign of its own for all n images.
    """
    products, squares = separate_products(mixtures)
    mixing = mixtures.mixing
    transposed = mixing.t().coalesce()
    # The matrix A' diag(r) A has the wanted products off its diagonal; take that off.
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
        mixtures: the encodings.

    Returns:
        What is left, an estimate of sum_{i != j} l_i l_j x_i x_j: f32[E,D]; and the
        squares x_i^2: f32[n,D], some of which may come out negative.
    """
    squared = mixtures.encodings.flatten(1).square()
    noise = mixtures.public_variance
    constant = torch.stack([torch.ones_like(noise), noise], 1)
    places = torch.tensor([0, 1], device=noise.device).expand(len(noise), 2)
    columns = torch.cat([places, mixtures.components + 2], 1)
    values = torch.cat([constant, mixtures.weights.square()], 1)
    design = sparse_rows(columns, values, mixtures.count + 2)
    normal = gram(columns, values, values, mixtures.count + 2)
    normal.diagonal().add_(DAMPING * normal.diagonal().mean())
    found = torch.linalg.solve(normal, design.t() @ squared)
    return squared - design @ found, found[2:]


def _squared(matrix: Tensor) -> Tensor:
    values = matrix.values().square()
    return torch.sparse_coo_tensor(
        matrix.indices(), values, matrix.shape, check_invariants=True
    )
