"""Take the gradient of a linear layer before a ReLU apart into the batch's images.

The gradient of J rows on B images is G^T X: image b adds G[b,j] x_b to row j, and
G[b,j] is 0 where it leaves unit j inactive. So the rows lie in the span of the images.
A direction u of that span that is orthogonal to all images but one is also orthogonal
to the rows of the units that this image leaves inactive: about half of all rows. Such
directions are sparse, no others are, and B of them give the images; the gradient of the
bias gives their scale.

Source: Dimitrov et al., "SPEAR: Exact Gradient Inversion of Batches in Federated
Learning", NeurIPS 2024 (arXiv:2403.03945). There, directions are guessed from B-1
random rows each, which takes time exponential in B. Here, as in their follow-up with
dictionary learning (Bakarsky et al., "SPEAR++", arXiv:2510.24200), sparse directions
are searched for: the sum of |u row| is minimised by iteratively reweighted least
squares, from random starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.layers.linear_layers import LayerTensors

ITERATIONS = 40
STARTS_AT_ONCE = 100
ORTHOGONAL = (1e-5, 1e-2)  # bounds of the cosine that passes for 0
NOISE = 1e-7  # share of the first singular value below which others are rounding
MIN_AGREEMENT = 0.95  # share of units whose activity an image must explain


@dataclass(frozen=True)
class Disaggregated:
    """The images of a batch, as far as they explain the gradient.

    Attributes:
        images: The verified images, f64[M,D].
        rank: The number of images that the gradient contains.
        starts: The number of random starts that were used.
    """

    images: Tensor
    rank: int
    starts: int


def disaggregate(
    gradient: LayerTensors,
    parameters: LayerTensors,
    batch_size: int,
    starts: int,
    rng: np.random.Generator,
    progress: Callable[[int, int], None],
) -> Disaggregated:
    """Recover the images of a batch.

    An image is returned only if the units that it activates are those whose rows it
    contributes to. Wrong images fail this test, so the returned ones are right.

    Args:
        gradient: The gradient of a linear layer before a ReLU.
        parameters: The parameters of that layer.
        batch_size: B, the number of images in the batch.
        starts: The largest number of random starts.
        rng: The generator of the starts.
        progress: The callback for progress, in starts.
    """
    # The gradient is rows @ basis: f64[J,D] = f64[J,r] @ f64[r,D].
    u, singular_values, vh = torch.linalg.svd(gradient.weight, full_matrices=False)
    rank = min(batch_size, int((singular_values > NOISE * singular_values[0]).sum()))
    rows, basis = u[:, :rank], singular_values[:rank, None] * vh[:rank]
    tolerance = _tolerance(singular_values, rank)
    directions = torch.empty(0, rank, dtype=torch.float64)
    images = torch.empty(0, gradient.weight.shape[1], dtype=torch.float64)
    used = 0
    while used < starts and len(images) < rank:
        drawn = rng.standard_normal((STARTS_AT_ONCE, rank))
        new = sparse_directions(rows, torch.from_numpy(drawn), tolerance)
        directions = torch.cat([directions, new])
        used += STARTS_AT_ONCE
        progress(min(used, starts), starts)
        directions = _sparsest_basis(rows, directions, tolerance)
        if len(directions) == rank:
            directions = _unmixed(rows, directions, tolerance)
            images = _images(directions, rows, basis, gradient.bias)
            images = images[_explains(images, directions, rows, parameters, tolerance)]
    return Disaggregated(images, rank, used)


def _tolerance(singular_values: Tensor, rank: int) -> float:
    """Return the cosine below which a direction and a row count as orthogonal.

    Args:
        singular_values: The singular values of the gradient. Those beyond the rank are
            rounding errors, which coordinates along the last direction show most.
        rank: The rank of the gradient without rounding errors.
    """
    noise = 0.0
    if rank < len(singular_values):
        noise = float(singular_values[rank] / singular_values[rank - 1])
    return min(max(noise, ORTHOGONAL[0]), ORTHOGONAL[1])


def sparse_directions(rows: Tensor, starts: Tensor, tolerance: float) -> Tensor:
    """Descend to directions that are orthogonal to many rows.

    Args:
        rows: The coordinates of the gradient's rows in the span, f64[J,r].
        starts: The directions to start from, f64[S,r].
        tolerance: The cosine that passes for 0.

    Returns:
        Unit vectors, f64[S,r].
    """
    units = _unit_rows(rows)
    # [J,r,1] * [J,1,r] -> [J,r*r]: the outer product of each row with itself
    products = (units[:, :, None] * units[:, None, :]).flatten(1)
    directions = torch.nn.functional.normalize(starts)
    softening = 0.1
    for _ in range(ITERATIONS):
        weights = 1 / ((directions @ units.T).abs() + softening)
        moments = (weights @ products).view(len(starts), rows.shape[1], -1)  # [S,r,r]
        # The eigenvector of the smallest eigenvalue minimises the weighted squares.
        directions = torch.linalg.eigh(moments)[1][:, :, 0]
        softening = max(0.7 * softening, 0.01 * tolerance)
    return directions


def _unit_rows(rows: Tensor) -> Tensor:
    """Return the rows scaled to length 1, without those that are rounding errors."""
    lengths = rows.norm(dim=1, keepdim=True)
    units: Tensor = rows / lengths
    return units[lengths[:, 0] > 1e-3 * lengths.max()]


def _sparsest_basis(rows: Tensor, directions: Tensor, tolerance: float) -> Tensor:
    """Choose independent directions, sparsest first.

    A direction that mixes two images is orthogonal only to the rows of units that
    neither activates. These are fewer than those that one image leaves inactive, so it
    comes after the directions that it depends on.
    """
    orthogonal = (directions @ _unit_rows(rows).T).abs() < tolerance
    counts = orthogonal.sum(1)
    chosen: list[Tensor] = []
    for index in counts.argsort(descending=True).tolist():
        if len(chosen) == rows.shape[1] or counts[index] <= rows.shape[1]:
            break
        candidate = torch.stack([*chosen, directions[index]])
        if torch.linalg.svdvals(candidate)[-1] > 1e-3:
            chosen.append(directions[index])
    return torch.stack(chosen) if chosen else directions[:0]


def _unmixed(rows: Tensor, directions: Tensor, tolerance: float) -> Tensor:
    """Subtract from each direction its part in another one.

    Two similar images activate nearly the same units. The descent then stops between
    their two directions, where the rows that both leave inactive are orthogonal. The
    right multiple to subtract is a ratio that is the same for all rows which only one
    of the two images leaves inactive: the ratio that makes most rows orthogonal is
    taken.
    """
    units, unmixed = _unit_rows(rows), directions.clone()
    for index in range(len(unmixed)):
        for other in range(len(unmixed)):
            if index == other:
                continue
            cosines, other_cosines = units @ unmixed[index], units @ unmixed[other]
            ratios = (cosines / other_cosines)[other_cosines.abs() > tolerance]
            candidates = unmixed[index] - ratios[:, None] * unmixed[other]
            candidates = torch.nn.functional.normalize(candidates)
            counts = ((candidates @ units.T).abs() < tolerance).sum(1)
            before = (cosines.abs() < tolerance).sum()
            if len(counts) and counts.max() > before:
                unmixed[index] = candidates[counts.argmax()]
    return unmixed


def _images(
    directions: Tensor, rows: Tensor, basis: Tensor, bias_gradient: Tensor
) -> Tensor:
    """Return the images f64[r,D] that each contribute along one direction only."""
    shares = directions @ rows.T  # [r,J]: the contributions of an image, up to scale
    scale = torch.linalg.lstsq(shares.T, bias_gradient[:, None]).solution
    images: Tensor = torch.linalg.solve(directions.T, basis) / scale
    return images


def _explains(
    images: Tensor,
    directions: Tensor,
    rows: Tensor,
    parameters: LayerTensors,
    tolerance: float,
) -> Tensor:
    """Tell which images activate the units that they contribute to, bool[r].

    Args:
        images: The candidate images, f64[r,D].
        directions: The direction of each, f64[r,r].
        rows: The coordinates of the gradient's rows in the span, f64[J,r].
        parameters: The parameters of the layer.
        tolerance: The cosine that passes for 0.
    """
    active = images @ parameters.weight.T + parameters.bias > 0
    lengths = rows.norm(dim=1)
    contributes = (directions @ rows.T).abs() > tolerance * lengths
    # Rows of length 0 are of units that no image activates, or of rounding errors.
    counted = lengths > 1e-3 * lengths.max()
    agreement = (active == contributes)[:, counted].double().mean(dim=1)
    fits: Tensor = agreement >= MIN_AGREEMENT
    return fits
