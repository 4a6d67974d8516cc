"""Estimate the memory that matching one gradient takes."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from instahide_fl.transcript.view import Observation

# Upper bounds of the peaks measured with ResNet-18 and small networks, batches 1 to 8.
PER_SAVED_BYTE = 9  # bytes, for each byte that autograd saves in one ordinary pass
PER_PARAMETER_BYTE = 4  # bytes in each step, for each byte of parameters


def memory_of_one(
    model: nn.Module, image_shape: tuple[int, int, int], observation: Observation
) -> int:
    """Estimate the memory of one problem: one victim, one restart.

    Args:
        model: The network, as `training_network` returns it.
        image_shape: C, H, W.
        observation: The victim, for its batch sizes.

    Returns:
        Bytes: what autograd saves for second derivatives, and copies of the update.
    """
    sizes = observation.batch_sizes
    saved = _saved_bytes(model, (max(sizes), *image_shape)) * sum(sizes) // max(sizes)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return PER_SAVED_BYTE * saved + PER_PARAMETER_BYTE * parameters * len(sizes)


def _saved_bytes(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Count the bytes that autograd saves in a pass, without parameters.

    The pass runs on the meta device, so that it takes neither memory nor time.
    """
    counted = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal counted
        if not isinstance(tensor, nn.Parameter):
            counted += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        deepcopy(model).to("meta")(torch.empty(shape, device="meta"))
    return counted
