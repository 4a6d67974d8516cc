"""Pure aggregation rules: from a round's updates to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from instahide_fl.errors import RoundError
from instahide_fl.types import ClientUpdate


def weighted_mean(updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    """Average the updates, each weighted by its number of images (FedAvg, FedSGD).

    Sums run in the order given, in float64, so the caller's order decides the last
    bits: sort by client key.

    Args:
        updates: at least one; all with the same names and shapes.

    Returns:
        By parameter name, in the dtype of the updates.

    Raises:
        RoundError: there is no update, or one does not have the others' arrays.
    """
    return _mean(updates, [update.num_examples for update in updates])


def plain_mean(updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    """Average the updates, all with the same weight.

    Args:
        updates: as in `weighted_mean`.

    Raises:
        RoundError: as in `weighted_mean`.
    """
    return _mean(updates, [1] * len(updates))


AGGREGATORS: dict[str, Callable[[Sequence[ClientUpdate]], dict[str, Tensor]]] = {
    "weighted-mean": weighted_mean,
    "mean": plain_mean,
}


def _mean(updates: Sequence[ClientUpdate], weights: list[int]) -> dict[str, Tensor]:
    if not updates:
        raise RoundError("cannot average the updates of no client")
    first = updates[0].arrays
    total = sum(weights)
    sums = {name: torch.zeros_like(a, dtype=torch.float64) for name, a in first.items()}
    for update, weight in zip(updates, weights, strict=True):
        if update.arrays.keys() != first.keys():
            raise RoundError("the updates of a round have different parameters")
        for name, array in update.arrays.items():
            if array.shape != first[name].shape:
                raise RoundError(
                    f"the updates of a round disagree on {name}: "
                    f"{tuple(first[name].shape)} and {tuple(array.shape)}"
                )
            sums[name].add_(array, alpha=weight / total)
    return {name: value.to(first[name].dtype) for name, value in sums.items()}
