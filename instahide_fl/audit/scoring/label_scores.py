"""Scoring recovered labels against the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import Target
from instahide_fl.audit.scoring.ground_truth import RecoveredClient
from instahide_fl.errors import ShapeError
from instahide_fl.metrics.labels import (
    HardLabels,
    SoftLabels,
    hard_label_overlap,
    soft_label_errors,
)
from instahide_fl.transcript.truth import ClientTruth


def score_hard_labels(
    clients: Sequence[RecoveredClient],
    target: Target,
    num_classes: int,
    rng: np.random.Generator,
) -> HardLabels | None:
    """Count classes that an attack named and that are in the batch.

    Recovered private images are held against the classes of the client's images, all
    else against those of all private images in the encodings, each as often as mixed.

    Args:
        clients: What was recovered of each client, beside its truth.
        target: What the attack recovered.
        num_classes: K.
        rng: The generator that draws the guesses that they are held against.

    Returns:
        The counts of all clients together; None if no classes were named.

    Raises:
        ShapeError: a class is not in 0..K-1.
    """
    total: HardLabels | None = None
    for recovered, truths in clients:
        classes = recovered.classes
        if classes is None or not len(classes):
            continue
        if int(classes.min()) < 0 or int(classes.max()) >= num_classes:
            raise ShapeError(
                f"recovered classes must lie in 0..{num_classes - 1}, got "
                f"{int(classes.min())}..{int(classes.max())}"
            )
        true_classes = (
            _classes_of_images(truths)
            if target == "private"
            else _classes_as_mixed(truths)
        )
        labels = hard_label_overlap(classes, true_classes, num_classes, rng)
        total = labels if total is None else total + labels
    return total


def score_soft_labels(
    clients: Sequence[RecoveredClient], num_classes: int
) -> SoftLabels | None:
    """Compare soft labels with those that the client trained on.

    Args:
        clients: What was recovered of each client, beside its truth.
        num_classes: K.

    Returns:
        The errors of all clients together; None if no soft labels were given.

    Raises:
        ShapeError: the soft labels are not [M,K].
    """
    total: SoftLabels | None = None
    for recovered, truths in clients:
        soft = recovered.soft_targets
        if soft is None or not len(soft):
            continue
        if soft.ndim != 2 or soft.shape[1] != num_classes:
            raise ShapeError(
                f"recovered soft labels must be [M,{num_classes}], got "
                f"{tuple(soft.shape)}"
            )
        true_soft = torch.cat([truth.soft_targets for truth in truths])
        # A diverged attack names nothing.
        labels = soft_label_errors(soft.nan_to_num(0.0, 0.0, 0.0), true_soft)
        total = labels if total is None else total + labels
    return total


def _classes_of_images(truths: Sequence[ClientTruth]) -> Tensor:
    """Return i64[n], the class of each of the client's images, each once."""
    by_row = {
        row: target
        for truth in truths
        for row, target in zip(truth.rows.tolist(), truth.targets.tolist(), strict=True)
    }
    return torch.tensor(list(by_row.values()))


def _classes_as_mixed(truths: Sequence[ClientTruth]) -> Tensor:
    """Return i64[E*p], the class of each image in each encoding."""
    return torch.cat([truth.targets[truth.components].flatten() for truth in truths])
