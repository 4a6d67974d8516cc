"""A network's arrays: what server and clients exchange of it.

The arrays are the network's parameters and, where BatchNorm keeps running statistics,
those too. BatchNorm's counter of batches is left out: it is no statistic, and an
average of counters would mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def shared_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics by name; empty without BatchNorm."""
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point()
    }


def live_arrays(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and running statistics by name: the model's own memory."""
    return {**dict(model.named_parameters()), **shared_buffers(model)}


def get_arrays(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the arrays by name, on the CPU, contiguous."""
    return {
        name: array.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, array in live_arrays(model).items()
    }


def load_arrays(model: nn.Module, arrays: Mapping[str, Tensor]) -> None:
    """Copy arrays into a model, in place.

    Args:
        model: Any module.
        arrays: All of the model's arrays by name, in its shapes.
    """
    with torch.no_grad():
        for name, array in live_arrays(model).items():
            array.copy_(arrays[name])
