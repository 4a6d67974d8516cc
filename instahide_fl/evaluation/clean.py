"""The evaluation on clean test images, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.models.normalization import single_values_explained
from instahide_fl.types import PrivateSplit

BATCH_SIZE = 128


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """How well a batch is classified.

    Attributes:
        correct: The number of images whose class is predicted.
        loss: The sum of their cross-entropies, in nats.
    """

    correct: int
    loss: float


def evaluate(
    model: nn.Module, images: PrivateSplit, batch_size: int = BATCH_SIZE
) -> tuple[float, float]:
    """Classify clean (not encoded) images, as the authors' code evaluates.

    Args:
        model: A network from f32[B,C,H,W] to logits f32[B,K].
        images: The test images, normalised with their own statistics.
        batch_size: The number of images at a time.

    Returns:
        The accuracy in [0, 1], and the mean cross-entropy in nats.
    """
    starts = range(0, len(images), batch_size)
    batches = (
        evaluate_batch(model, images, slice(start, start + batch_size))
        for start in starts
    )
    return mean_figures(batches, len(images))


@torch.no_grad()
def evaluate_batch(
    model: nn.Module, images: PrivateSplit, batch: slice
) -> BatchFigures:
    """Classify a batch of clean images.

    The last bits of a prediction depend on the batch that an image is in, and with
    `local-batch` normalisation the prediction itself does.

    Args:
        model: A network from f32[B,C,H,W] to logits f32[B,K].
        images: The N test images, normalised with their own statistics.
        batch: The batch's part of 0..N-1.
    """
    model.eval()
    device = next(model.parameters()).device
    rows: slice | Tensor = batch if images.rows is None else images.rows[batch]
    inputs = images.statistics.normalise(images.images[rows].to(device))
    targets = images.targets[rows].to(device)
    with single_values_explained():
        logits = model(inputs)
    correct = int((logits.argmax(dim=1) == targets).sum())
    loss = F.cross_entropy(logits, targets, reduction="sum").item()
    return BatchFigures(correct, loss)


def mean_figures(
    batches: Iterable[BatchFigures], num_images: int
) -> tuple[float, float]:
    """Return accuracy and mean loss over batches.

    Args:
        batches: The figures of all batches, in the order of the images: losses are
            added up in it, in float64.
        num_images: The number of images in all batches.

    Returns:
        The accuracy in [0, 1], and the mean cross-entropy in nats.
    """
    correct, loss = 0, 0.0
    for figures in batches:
        correct += figures.correct
        loss += figures.loss
    return correct / num_images, loss / num_images
