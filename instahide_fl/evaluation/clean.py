"""The evaluation on clean test images, by the server."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.models.normalization import single_values_explained
from instahide_fl.types import PrivateSplit


@torch.no_grad()
def evaluate(
    model: nn.Module, images: PrivateSplit, batch_size: int = 128
) -> tuple[float, float]:
    """Classify clean (not encoded) images, as the authors' code evaluates.

    Args:
        model: A network from f32[B,C,H,W] to logits f32[B,K].
        images: The test images, normalised with their own statistics.
        batch_size: The number of images at a time.

    Returns:
        The accuracy in [0, 1], and the mean cross-entropy in nats.
    """
    model.eval()
    device = next(model.parameters()).device
    correct, loss = 0, 0.0
    for start in range(0, len(images), batch_size):
        rows: slice | Tensor = slice(start, start + batch_size)
        if images.rows is not None:
            rows = images.rows[rows]
        inputs = images.statistics.normalise(images.images[rows].to(device))
        targets = images.targets[rows].to(device)
        with single_values_explained():
            logits = model(inputs)
        correct += int((logits.argmax(dim=1) == targets).sum())
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
    return correct / len(images), loss / len(images)
