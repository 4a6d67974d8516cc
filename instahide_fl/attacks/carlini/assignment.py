"""Decide which image each label entry shows."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.attacks.carlini.clusters import Clusters
from instahide_fl.attacks.carlini.label_entries import LabelEntries

SLACK = 1.15  # entries that an image may have, over the mean of its class
MAX_EXACT_CELLS = 4_000_000  # of a matrix that is assigned exactly


def assign(entries: LabelEntries, clusters: Clusters) -> Tensor:
    """Give each label entry an image of its class, and no image too many entries.

    Every image is encoded equally often, so the entries of a class divide almost
    evenly. With that bound the best assignment is a linear sum assignment; where the
    problem is too large for it, entries choose in the order of their scores.

    Args:
        entries: The label entries of one client.
        clusters: The clusters of the same entries.

    Returns:
        i64[L], rows of `clusters`; -1 where a class has no cluster.
    """
    links = torch.full((len(entries),), -1, dtype=torch.int64)
    for label in torch.unique(entries.classes):
        members = (entries.classes == label).nonzero()[:, 0]
        images = (clusters.classes == label).nonzero()[:, 0]
        if not len(images):
            continue
        scores = clusters.scores[members[:, None], images]  # [L,n] -> [members,images]
        value = scores * entries.coefficients[members, None]
        capacity = math.ceil(SLACK * len(members) / len(images))
        if len(members) * len(images) * capacity <= MAX_EXACT_CELLS:
            chosen = _assign_exactly(value.numpy(), capacity)
        else:
            chosen = _assign_greedily(value.numpy(), capacity)
        links[members] = images[torch.from_numpy(chosen)]
    return links


def _assign_exactly(value: NDArray[np.float32], capacity: int) -> NDArray[np.int64]:
    """Assign rows to columns, each used at most `capacity` times: the largest sum."""
    from scipy.optimize import linear_sum_assignment

    # Each image stands for as many columns as it may have entries.
    repeated = np.repeat(value, capacity, axis=1)  # [L,n] -> [L,n*capacity]
    rows, columns = linear_sum_assignment(repeated, maximize=True)
    chosen = np.empty(len(value), np.int64)
    chosen[rows] = columns // capacity
    return chosen


def _assign_greedily(value: NDArray[np.float32], capacity: int) -> NDArray[np.int64]:
    free = np.full(value.shape[1], capacity)
    chosen = np.full(len(value), -1, np.int64)
    for cell in np.argsort(-value, axis=None, kind="stable"):
        row, column = divmod(int(cell), value.shape[1])
        if chosen[row] < 0 and free[column]:
            chosen[row] = column
            free[column] -= 1
    return chosen


def margins(scores: Tensor) -> Tensor:
    """Return by how much the best image of each label entry leads.

    Args:
        scores: f32[L,n], as in `Clusters`.

    Returns:
        f32[L]. The only image of its class leads by the largest margin of all, or 1.
    """
    if scores.shape[1] < 2:
        return torch.ones(len(scores))
    best = scores.topk(2, dim=1).values
    lead = best[:, 0] - best[:, 1]
    finite = lead[lead.isfinite()]
    alone = float(finite.max()) if len(finite) else 1.0
    return torch.where(lead.isfinite(), lead, alone)
