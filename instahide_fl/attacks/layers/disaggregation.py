"""Take the gradient of a linear layer before a ReLU apart into the batch's images.

The gradient of J rows on B images is G^T X: image b adds G[b,j] x_b to row j, and
G[b,j] is 0 where it leaves unit j inactive. So the rows lie in the span of the images,
and a direction u of that span, orthogonal to all images but one, is orthogonal to the
rows that this one leaves inactive: about half of them. Such directions are sparse, all
others are not, and B of them give the images; the gradient of the bias gives their
scale.

Source: Dimitrov et al., "SPEAR: Exact Gradient Inversion of Batches in Federated
Learning", NeurIPS 2024 (arXiv:2403.03945). There, directions are guessed from B-1
random rows each, which takes time exponential in B. Here, as in their follow-up with
dictionary learning (Bakarsky et al., "SPEAR++", arXiv:2510.24200), a sparse direction
is searched for: ours minimises the sum of |u row| by iteratively reweighted least
squares from random starts.
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
NOISE = 1e-7  # singular values below this share of the first are rounding
VERIFIED = 0.95  # share of units whose activity an image must explain


@dataclass(frozen=True)
class Disaggregated:
    """The images of a batch, as far as they explain the gradient.

    Attributes:
        images: f64[M,D].
        rank: images that the gradient contains.
        starts: random starts that were used.
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
    advance: Callable[[int, int], None],
) -> Disaggregated:
    """Recover the images of a batch.

    An image is returned only if the units it activates are those whose rows it
    contributes to: wrong ones fail that, so what is returned is right.

    Args:
        gradient: of a linear layer before a ReLU.
        parameters: of that layer.
        batch_size: B.
        starts: most random starts.
        rng: draws them.
        advance: told how many of them are used.
    """
    left, values, right = torch.linalg.svd(gradient.weight, full_matrices=False)
    rank = min(batch_size, int((values > NOISE * values[0]).sum()))
    rows, basis = left[:, :rank], values[:rank, None] * right[:rank]
    tolerance = _tolerance(values, rank)
    found = torch.empty(0, rank, dtype=torch.float64)
    images = torch.empty(0, gradient.weight.shape[1], dtype=torch.float64)
    used = 0
    while used < starts and len(images) < rank:
        drawn = rng.standard_normal((STARTS_AT_ONCE, rank))
        directions = sparse_directions(rows, torch.from_numpy(drawn), tolerance)
        found = torch.cat([found, directions])
        used += STARTS_AT_ONCE
        advance(min(used, starts), starts)
        found = _sparsest_basis(rows, found, tolerance)
        if len(found) == rank:
            found = _unmixed(rows, found, tolerance)
            images = _images(found, rows, basis, gradient.bias)
            images = images[_explains(images, found, rows, parameters, tolerance)]
    return Disaggregated(images, rank, used)


def _tolerance(values: Tensor, rank: int) -> float:
    """Return the cosine below which a direction and a row count as orthogonal.

    Args:
        values: singular values of the gradient; those beyond the rank are rounding
            errors, which coordinates along the last direction show most.
        rank: of the gradient without them.
    """
    noise = float(values[rank] / values[rank - 1]) if rank < len(values) else 0.0
    return min(max(noise, ORTHOGONAL[0]), ORTHOGONAL[1])


def sparse_directions(rows: Tensor, starts: Tensor, tolerance: float) -> Tensor:
    """Descend to directions that are orthogonal to many rows.

    Args:
        rows: f64[J,r].
        starts: f64[S,r].
        tolerance: cosine that passes for 0.

    Returns:
        f64[S,r], unit vectors.
    """
    units = _unit_rows(rows)
    products = (units[:, :, None] * units[:, None, :]).flatten(1)  # (J, r*r)
    directions = torch.nn.functional.normalize(starts)
    softening = 0.1
    for _ in range(ITERATIONS):
        weights = 1 / ((directions @ units.T).abs() + softening)
        moments = (weights @ products).view(len(starts), rows.shape[1], -1)
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

    A direction that belongs to two images is orthogonal to the rows of neither, which
    are fewer than those of one, so it comes after the directions it depends on.
    """
    inside = (directions @ _unit_rows(rows).T).abs() < tolerance
    counts = inside.sum(1)
    chosen: list[Tensor] = []
    for index in counts.argsort(descending=True).tolist():
        if len(chosen) == rows.shape[1] or counts[index] <= rows.shape[1]:
            break
        candidate = torch.stack([*chosen, directions[index]])
        if torch.linalg.svdvals(candidate)[-1] > 1e-3:
            chosen.append(directions[index])
    return torch.stack(chosen) if chosen else directions[:0]


def _unmixed(rows: Tensor, directions: Tensor, tolerance: float) -> Tensor:
    """Take out of each direction what another one adds to it.

    Two similar images activate nearly the same units. The descent then stops between
    their two directions, where the rows that both leave inactive are orthogonal. How
    much to subtract is a ratio that all rows share which only one of the two leaves
    inactive: the ratio that makes most rows orthogonal is taken.
    """
    units, unmixed = _unit_rows(rows), directions.clone()
    for one in range(len(unmixed)):
        for other in range(len(unmixed)):
            if one == other:
                continue
            along, beside = units @ unmixed[one], units @ unmixed[other]
            ratios = (along / beside)[beside.abs() > tolerance]
            tried = unmixed[one] - ratios[:, None] * unmixed[other]
            tried = torch.nn.functional.normalize(tried)
            counts = ((tried @ units.T).abs() < tolerance).sum(1)
            before = (along.abs() < tolerance).sum()
            if len(counts) and counts.max() > before:
                unmixed[one] = tried[counts.argmax()]
    return unmixed


def _images(
    directions: Tensor, rows: Tensor, basis: Tensor, bias_gradient: Tensor
) -> Tensor:
    """Return the images f64[r,D] that each contribute along one direction only."""
    shares = directions @ rows.T  # (r, J), those of an image up to its scale
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
    """Tell which images activate the units that they contribute to, bool[r]."""
    active = images @ parameters.weight.T + parameters.bias > 0
    lengths = rows.norm(dim=1)
    contributes = (directions @ rows.T).abs() > tolerance * lengths
    # Rows of length 0 are of units that no image activates, or of rounding errors.
    counted = lengths > 1e-3 * lengths.max()
    agreement = (active == contributes)[:, counted].double().mean(dim=1)
    fits: Tensor = agreement >= VERIFIED
    return fits
