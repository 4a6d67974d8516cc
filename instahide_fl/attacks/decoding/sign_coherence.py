"""One sign for each pixel, such that neighbouring pixels agree.

Decoded images are known up to one sign for each pixel, the same for all images. In
natural images neighbours correlate, so over n images the scalar product of two
neighbouring pixels tells whether their signs agree. One sign stays open, that of all.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import Tensor

SWEEPS = 5


def coherent_signs(images: Tensor, sweeps: int = SWEEPS) -> Tensor:
    """Return signs that make neighbouring pixels and channels agree.

    They go for a large sum of s_p s_q <x_p, x_q> over neighbours p, q: first exactly
    along the spanning tree of the largest |<x_p, x_q>|, then by single flips.

    Args:
        images: f32[n,C,H,W], each pixel with a sign of its own for all images.
        sweeps: rounds of flips.

    Returns:
        f32[C,H,W] of -1 and +1, on the device of the images.
    """
    shape = images.shape[1:]
    values = images.flatten(1).cpu()
    first, second = _neighbours(shape)
    products = (values[:, first] * values[:, second]).sum(0).numpy()
    pairs = (first.numpy(), second.numpy())
    signs = _along_spanning_tree(products, pairs, values.shape[1])
    signs = _by_single_flips(signs, products, pairs, _classes(shape), sweeps)
    return torch.from_numpy(signs).to(images).view(shape)


def _neighbours(shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return pairs of neighbours: right, below, and of every two channels."""
    number = torch.arange(shape.numel()).view(shape)
    pairs = [(number[:, :, :-1], number[:, :, 1:]), (number[:, :-1], number[:, 1:])]
    channels = torch.combinations(torch.arange(shape[0]))
    pairs.append((number[channels[:, 0]], number[channels[:, 1]]))
    first = torch.cat([one.flatten() for one, _ in pairs])
    return first, torch.cat([other.flatten() for _, other in pairs])


def _classes(shape: torch.Size) -> NDArray[np.int64]:
    """Number the pixels such that no two neighbours have one number."""
    channel, row, column = np.indices(shape)
    classes: NDArray[np.int64] = (channel * 2 + (row + column) % 2).ravel()
    return classes


def _along_spanning_tree(
    products: NDArray[np.float32],
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    total: int,
) -> NDArray[np.float32]:
    # Lengths must be positive: scipy takes an edge of length 0 for none.
    strength = np.abs(products)
    lengths = 2 * strength.max() + 1 - strength
    graph = coo_array((lengths, pairs), shape=(total, total))
    tree = minimum_spanning_tree(graph.tocsr())
    order, parent = breadth_first_order(tree, 0, directed=False)
    agrees = coo_array((np.where(products < 0, -1, 1), pairs), shape=(total, total))
    agrees = (agrees + agrees.T).tocsr()
    relative = np.ones(total, np.float32)
    relative[order[1:]] = agrees[parent[order[1:]], order[1:]]
    signs = np.ones(total, np.float32)
    for pixel in order[1:]:
        signs[pixel] = signs[parent[pixel]] * relative[pixel]
    return signs


def _by_single_flips(
    signs: NDArray[np.float32],
    products: NDArray[np.float32],
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    classes: NDArray[np.int64],
    sweeps: int,
) -> NDArray[np.float32]:
    total = len(signs)
    graph = coo_array((products, pairs), shape=(total, total))
    graph = (graph + graph.T).tocsr()
    # Pixels of one class are no neighbours, so flipping them together is safe.
    groups = [np.flatnonzero(classes == one) for one in range(classes.max() + 1)]
    rows = [graph[group] for group in groups]
    for _ in range(sweeps):
        for group, row in zip(groups, rows, strict=True):
            signs[group] *= np.where(signs[group] * (row @ signs) < 0, -1, 1)
    return signs
