"""What clients contribute to a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

UpdateKind: TypeAlias = Literal["gradient", "delta"]


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """What one client contributes to a round.

    Attributes:
        arrays: Gradients of the mean loss, or local minus global parameters, by
            parameter name.
        num_examples: Number of images that the update was computed on, its weight in
            the aggregate.
        kind: "gradient" or "delta", what `arrays` holds.
        metrics: Numbers for the log, "train_loss" and "seconds".
    """

    arrays: dict[str, Tensor]
    num_examples: int
    kind: UpdateKind
    metrics: dict[str, float]


def client_sort_key(key: str) -> tuple[int, int, str]:
    """Return a sort key: numbered clients by number, then named ones by name."""
    return (0, int(key), "") if key.isdecimal() else (1, 0, key)
