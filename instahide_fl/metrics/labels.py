"""Labels recovered by an attack against the true ones, and against guesses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instahide_fl.metrics.matching import match_one_to_one

GUESSES = 2000  # random guesses that hard labels are held against


@dataclass(frozen=True)
class HardLabels:
    """Classes named by an attack, against those that are there.

    Attributes:
        hits: The number of named classes that are in the truth, each as often as it is
            there.
        count: The number of named classes.
        guessed: f64[GUESSES], the hits of as many classes drawn at random.
    """

    hits: int
    count: int
    guessed: Tensor

    def __add__(self, other: HardLabels) -> HardLabels:
        guessed = self.guessed + other.guessed
        return HardLabels(self.hits + other.hits, self.count + other.count, guessed)

    @property
    def overlap(self) -> float:
        """The share of the named classes that are there."""
        return self.hits / self.count

    @property
    def chance(self) -> float:
        """The share of random guesses that are there, on average."""
        return float(self.guessed.mean()) / self.count

    @property
    def p_value(self) -> float:
        """The share of random guesses that are as good."""
        as_good = int((self.guessed >= self.hits).sum())
        return (as_good + 1) / (len(self.guessed) + 1)

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        return {"overlap": self.overlap, "chance": self.chance, "count": self.count}


@dataclass(frozen=True)
class SoftLabels:
    """Soft labels against the truth, row by row.

    Attributes:
        errors: f64[R], the largest absolute error of each row.
        uninformed: f64[R], the largest absolute error of a guess: the right sum of the
            row, spread evenly over the classes.
    """

    errors: Tensor
    uninformed: Tensor

    def __add__(self, other: SoftLabels) -> SoftLabels:
        return SoftLabels(
            torch.cat([self.errors, other.errors]),
            torch.cat([self.uninformed, other.uninformed]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        return {
            "max_error": float(self.errors.max()),
            "mean_error": float(self.errors.mean()),
            "best_error": float(self.errors.min()),
            "uninformed_error": float(self.uninformed.mean()),
            "count": len(self.errors),
        }


def hard_label_overlap(
    classes: Tensor, truth: Tensor, num_classes: int, rng: np.random.Generator
) -> HardLabels:
    """Count the named classes that are in the truth, each as often as it is there.

    Args:
        classes: i64[M], the classes named by the attack, at least one.
        truth: i64[n], the classes of all private images in the batch.
        num_classes: K.
        rng: The generator that draws the guesses.
    """
    there = torch.bincount(truth, minlength=num_classes)
    guesses = torch.from_numpy(rng.integers(0, num_classes, (GUESSES, len(classes))))
    counts = torch.zeros(GUESSES, num_classes, dtype=torch.long)
    counts.scatter_add_(1, guesses, torch.ones_like(guesses))  # [GUESSES,K]
    guessed = torch.minimum(counts, there).sum(dim=1).double()
    named = torch.bincount(classes, minlength=num_classes)
    hits = int(torch.minimum(named, there).sum())
    return HardLabels(hits, len(classes), guessed)


def soft_label_errors(recovered: Tensor, truth: Tensor) -> SoftLabels:
    """Return the errors of soft labels.

    Several rows are matched to the truth one-to-one by their largest error. A single
    row of a larger batch may be the mean or the sum of the batch's soft labels: it is
    compared with both, the sum divided by the size of the batch, and the smaller error
    counts.

    Args:
        recovered: f32[M,K].
        truth: f32[E,K], non-negative; a row sums to the weight of its private images.
    """
    recovered, truth = recovered.double(), truth.double()
    if len(recovered) == 1 and len(truth) > 1:
        mean = truth.mean(dim=0)
        both = torch.stack([recovered[0], recovered[0] / len(truth)])
        error = (both - mean).abs().amax(dim=1).min()
        return SoftLabels(error[None], _uninformed(mean[None]))
    # [M,1,K] - [1,E,K] -> [M,E]
    distance = (recovered[:, None] - truth[None]).abs().amax(dim=2)
    rows, columns = match_one_to_one(-distance)
    return SoftLabels(distance[rows, columns], _uninformed(truth[columns]))


def _uninformed(truth: Tensor) -> Tensor:
    even = truth.sum(dim=1, keepdim=True) / truth.shape[1]
    return (truth - even).abs().amax(dim=1)
