"""Aggregation by a mean: how much each update counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from instahide_fl.aggregation.reduction import tree_mean
from instahide_fl.types import ClientUpdate


def by_images(update: ClientUpdate) -> float:
    """Weigh an update by the images it was computed on (FedAvg, FedSGD)."""
    return update.num_examples


def alike(update: ClientUpdate) -> float:
    """Weigh all updates the same."""
    return 1


WEIGHTS: dict[str, Callable[[ClientUpdate], float]] = {
    "weighted-mean": by_images,
    "mean": alike,
}


def weighted_mean(updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    """Average the updates, each weighted by its number of images (FedAvg, FedSGD).

    The order of the updates decides the last bits: sort by client key.

    Args:
        updates: at least one; all with the same names and shapes.

    Returns:
        By parameter name.

    Raises:
        RoundError: there is no update, or one does not have the others' arrays.
    """
    return tree_mean(updates, by_images)


def plain_mean(updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    """Average the updates, all with the same weight.

    Args:
        updates: as in `weighted_mean`.

    Raises:
        RoundError: as in `weighted_mean`.
    """
    return tree_mean(updates, alike)
