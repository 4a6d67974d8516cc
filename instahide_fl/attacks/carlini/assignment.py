"""Decide which image each slot shows."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.attacks.carlini.clusters import Clusters
from instahide_fl.attacks.carlini.label_slots import Slots

SLACK = 1.15  # slots that an image may have, over the mean of its class
LARGEST_EXACT = 4_000_000  # cells of a matrix that is assigned exactly


def assign(slots: Slots, clusters: Clusters) -> Tensor:
    """Give each slot an image of its class, and no image too many slots.

    Every image is encoded equally often, so the slots of a class divide almost evenly.
    With that bound the best assignment is a linear sum assignment; where the problem is
    too large for it, slots choose in the order of their scores.

    Args:
        slots: of one client.
        clusters: of the same.

    Returns:
        i64[S], rows of `clusters`; -1 where a class has no cluster.
    """
    links = torch.full((len(slots),), -1, dtype=torch.int64)
    for one in torch.unique(slots.classes):
        own = (slots.classes == one).nonzero()[:, 0]
        images = (clusters.classes == one).nonzero()[:, 0]
        if not len(images):
            continue
        scores = clusters.scores[own[:, None], images]
        value = scores * slots.coefficients[own, None]
        capacity = math.ceil(SLACK * len(own) / len(images))
        if len(own) * len(images) * capacity <= LARGEST_EXACT:
            chosen = _exact(value.numpy(), capacity)
        else:
            chosen = _greedy(value.numpy(), capacity)
        links[own] = images[torch.from_numpy(chosen)]
    return links


def _exact(value: NDArray[np.float32], capacity: int) -> NDArray[np.int64]:
    """Assign rows to columns, each used at most `capacity` times: the largest sum."""
    from scipy.optimize import linear_sum_assignment

    repeated = np.repeat(value, capacity, axis=1)
    rows, columns = linear_sum_assignment(repeated, maximize=True)
    chosen = np.empty(len(value), np.int64)
    chosen[rows] = columns // capacity
    return chosen


def _greedy(value: NDArray[np.float32], capacity: int) -> NDArray[np.int64]:
    left = np.full(value.shape[1], capacity)
    chosen = np.full(len(value), -1, np.int64)
    for cell in np.argsort(-value, axis=None, kind="stable"):
        row, column = divmod(int(cell), value.shape[1])
        if chosen[row] < 0 and left[column]:
            chosen[row] = column
            left[column] -= 1
    return chosen


def margins(scores: Tensor) -> Tensor:
    """Return by how much the best image of each slot leads, f32[S].

    The only image of its class leads by the largest margin found, or 1.
    """
    if scores.shape[1] < 2:
        return torch.ones(len(scores))
    best = scores.topk(2, dim=1).values
    lead = best[:, 0] - best[:, 1]
    found = lead[lead.isfinite()]
    alone = float(found.max()) if len(found) else 1.0
    return torch.where(lead.isfinite(), lead, alone)
