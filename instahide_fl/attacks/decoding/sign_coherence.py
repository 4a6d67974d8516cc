"""Find one sign for each pixel, such that neighbouring pixels agree.

Decoded images are known up to one sign for each pixel, the same for all images. In
natural images neighbours correlate, so over n images the scalar product of two
neighbouring pixels tells whether their signs agree. One sign for all pixels together
stays open.
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

    They make the sum of s_p s_q <x_p, x_q> over neighbours p, q large: first exactly
    along the spanning tree of the largest |<x_p, x_q>|, then by single flips.

    Args:
        images: f32[n,C,H,W], each pixel with a sign of its own for all images.
        sweeps: The number of sweeps of flips over all pixels.

    Returns:
        f32[C,H,W] of -1 and +1, on the device of the images.
    """
    shape = images.shape[1:]
    values = images.flatten(1).cpu()  # [n,C,H,W] -> [n,D]
    first, second = _neighbours(shape)
    products = (values[:, first] * values[:, second]).sum(0).numpy()
    pairs = (first.numpy(), second.numpy())
    signs = _along_spanning_tree(products, pairs, values.shape[1])
    signs = _by_single_flips(signs, products, pairs, _colours(shape), sweeps)
    return torch.from_numpy(signs).to(images).view(shape)


def _neighbours(shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return pairs of neighbours: to the right, below, and in every other channel."""
    number = torch.arange(shape.numel()).view(shape)
    pairs = [(number[:, :, :-1], number[:, :, 1:]), (number[:, :-1], number[:, 1:])]
    channels = torch.combinations(torch.arange(shape[0]))
    pairs.append((number[channels[:, 0]], number[channels[:, 1]]))
    first = torch.cat([pixels.flatten() for pixels, _ in pairs])
    return first, torch.cat([neighbours.flatten() for _, neighbours in pairs])


def _colours(shape: torch.Size) -> NDArray[np.int64]:
    """Colour the pixels like a chessboard in each channel: no two neighbours alike."""
    channel, row, column = np.indices(shape)
    colours: NDArray[np.int64] = (channel * 2 + (row + column) % 2).ravel()
    return colours


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
    # From the root outwards: a pixel's parent has its sign before the pixel.
    for pixel in order[1:]:
        signs[pixel] = signs[parent[pixel]] * relative[pixel]
    return signs


def _by_single_flips(
    signs: NDArray[np.float32],
    products: NDArray[np.float32],
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    colours: NDArray[np.int64],
    sweeps: int,
) -> NDArray[np.float32]:
    total = len(signs)
    graph = coo_array((products, pairs), shape=(total, total))
    graph = (graph + graph.T).tocsr()
    # Pixels of one colour are no neighbours, so they can be flipped together.
    groups = [np.flatnonzero(colours == colour) for colour in range(colours.max() + 1)]
    rows = [graph[group] for group in groups]
    for _ in range(sweeps):
        for group, row in zip(groups, rows, strict=True):
            signs[group] *= np.where(signs[group] * (row @ signs) < 0, -1, 1)
    return signs
