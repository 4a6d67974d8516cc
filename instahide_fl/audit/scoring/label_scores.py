"""Scoring recovered labels against the truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import Reconstruction
from instahide_fl.audit.scoring.originals import truths_of
from instahide_fl.errors import ShapeError
from instahide_fl.metrics.labels import (
    HardLabels,
    SoftLabels,
    hard_label_overlap,
    soft_label_errors,
)
from instahide_fl.transcript.truth import ClientTruth


def score_hard_labels(
    reconstruction: Reconstruction,
    truths: Mapping[tuple[int, str], ClientTruth],
    num_classes: int,
    rng: np.random.Generator,
) -> HardLabels | None:
    """Count classes that an attack named and that are in the batch.

    Recovered private images are held against the classes of the client's images, all
    else against those of all private images in the encodings, each as often as mixed.

    Args:
        reconstruction: of the attack.
        truths: by round and client.
        num_classes: K.
        rng: draws the guesses that it is held against.

    Raises:
        TranscriptError: the truth of a client is missing.
        ShapeError: a class is not in 0..K-1.
    """
    total: HardLabels | None = None
    for recovered in reconstruction.recovered:
        classes = recovered.classes
        if classes is None or not len(classes):
            continue
        if int(classes.min()) < 0 or int(classes.max()) >= num_classes:
            raise ShapeError(
                f"recovered classes must lie in 0..{num_classes - 1}, got "
                f"{int(classes.min())}..{int(classes.max())}"
            )
        known = truths_of(recovered, truths)
        there = (
            _classes_of_images(known)
            if reconstruction.target == "private"
            else torch.cat(
                [truth.targets[truth.components].flatten() for truth in known]
            )
        )
        found = hard_label_overlap(classes, there, num_classes, rng)
        total = found if total is None else total + found
    return total


def score_soft_labels(
    reconstruction: Reconstruction,
    truths: Mapping[tuple[int, str], ClientTruth],
    num_classes: int,
) -> SoftLabels | None:
    """Compare soft labels with those that the client trained on.

    Args:
        reconstruction: of the attack.
        truths: by round and client.
        num_classes: K.

    Raises:
        TranscriptError: the truth of a client is missing.
        ShapeError: the soft labels are not [M,K].
    """
    total: SoftLabels | None = None
    for recovered in reconstruction.recovered:
        soft = recovered.soft_targets
        if soft is None or not len(soft):
            continue
        if soft.ndim != 2 or soft.shape[1] != num_classes:
            raise ShapeError(
                f"recovered soft labels must be [M,{num_classes}], got "
                f"{tuple(soft.shape)}"
            )
        known = truths_of(recovered, truths)
        there = torch.cat([truth.soft_targets for truth in known])
        # A diverged attack names nothing.
        found = soft_label_errors(soft.nan_to_num(0.0, 0.0, 0.0), there)
        total = found if total is None else total + found
    return total


def _classes_of_images(truths: list[ClientTruth]) -> Tensor:
    images = {
        row: target
        for truth in truths
        for row, target in zip(truth.rows.tolist(), truth.targets.tolist(), strict=True)
    }
    return torch.tensor(list(images.values()))
