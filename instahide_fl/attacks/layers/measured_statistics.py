"""Measure the mean and variance of batches in every BatchNorm layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from instahide_fl.models.arrays import load_arrays

Statistics = dict[str, Tensor]


def running_momenta(network: nn.Module) -> dict[str, float]:
    """Return the momentum of each BatchNorm layer that keeps running statistics."""
    return {
        name: float(module.momentum)
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        and module.track_running_stats
        and module.momentum is not None
    }


def measured_statistics(
    network: nn.Module,
    parameters: Mapping[str, Tensor],
    images: Tensor,
    batch_sizes: Sequence[int],
) -> Statistics:
    """Return the statistics of batches, averaged as running statistics average them.

    Args:
        network: a network without dropout; its arrays are overwritten.
        parameters: The parameters that the batches go through, by name, with running
            statistics.
        images: The images, normalised, batch after batch, f32[E,C,H,W].
        batch_sizes: The number of images in each batch; they sum to E.

    Returns:
        "LAYER.mean" and "LAYER.variance" (unbiased) for each layer, f64[channels].
    """
    load_arrays(network, parameters)
    network.train()
    total: Statistics = {}
    momenta = running_momenta(network)
    of_batch: Statistics = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            _measuring_hook(of_batch, name)
        )
        for name in momenta
    ]
    with torch.no_grad():
        for batch in torch.split(images, list(batch_sizes)):
            network(batch)
            for name, value in of_batch.items():
                weight = momenta[name.rpartition(".")[0]]
                total[name] = (1 - weight) * total.get(name, 0.0) + weight * value
    for handle in handles:
        handle.remove()
    # The weights of the batches sum to 1 - (1 - momentum)^steps, not to 1.
    steps = len(batch_sizes)
    return {
        name: value / (1 - (1 - momenta[name.rpartition(".")[0]]) ** steps)
        for name, value in total.items()
    }


def _measuring_hook(
    statistics: Statistics, name: str
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def measure(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        features = inputs[0].double()
        # [B,channels,H,W] -> [channels]
        statistics[f"{name}.mean"] = features.mean((0, 2, 3))
        statistics[f"{name}.variance"] = features.var((0, 2, 3))

    return measure
