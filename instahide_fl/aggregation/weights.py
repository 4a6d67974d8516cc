"""The weight of each update in an aggregate that is a mean."""

from __future__ import annotations

from collections.abc import Callable

from instahide_fl.types import ClientUpdate


def weigh_by_images(update: ClientUpdate) -> float:
    """Weigh an update by the images it was computed on (FedAvg, FedSGD)."""
    return update.num_examples


def weigh_equally(update: ClientUpdate) -> float:
    """Give every update the same weight."""
    return 1


WEIGHTS: dict[str, Callable[[ClientUpdate], float]] = {
    "weighted-mean": weigh_by_images,
    "mean": weigh_equally,
}
"""The weight functions by value of `server.aggregation`; other rules have none."""
