"""Memory that matching one gradient takes."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from instahide_fl.transcript.view import Observation

# Bounds of peaks measured with ResNet-18 and the small networks, batches 1 to 8.
BY_KEPT = 9  # bytes, for each byte that one ordinary pass keeps
BY_PARAMETERS = 4  # bytes in each step, for each byte of parameters


def memory_of_one(
    model: nn.Module, image_shape: tuple[int, int, int], observation: Observation
) -> int:
    """Estimate the memory of one problem: one victim, one restart.

    Args:
        model: of `training_network`.
        image_shape: C, H, W.
        observation: of the victim; its batches count.

    Returns:
        Bytes: what all layers keep for the slopes of slopes, and copies of the update.
    """
    sizes = observation.batch_sizes
    kept = _kept(model, (max(sizes), *image_shape)) * sum(sizes) // max(sizes)
    parameters = sum(one.numel() * one.element_size() for one in model.parameters())
    return BY_KEPT * kept + BY_PARAMETERS * parameters * len(sizes)


def _kept(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Count bytes that a pass keeps to be differentiated, parameters apart."""
    counted = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal counted
        if not isinstance(tensor, nn.Parameter):
            counted += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda kept: kept):
        deepcopy(model).to("meta")(torch.empty(shape, device="meta"))
    return counted
