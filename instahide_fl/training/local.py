"""What a client computes in a round."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from instahide_fl.config import TrainConfig
from instahide_fl.encoding.encoder import Encoder
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.types import ClientUpdate, PrivateSplit


def local_update(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    split: PrivateSplit,
    encoder: Encoder,
    config: TrainConfig,
    rng: np.random.Generator,
) -> ClientUpdate:
    """Compute a client's contribution to a round, on encodings only.

    Args:
        model: a network of the right shape; its parameters are overwritten.
        parameters: the global ones, by name.
        split: the client's private images, on the model's device.
        encoder: turns images into what is trained on.
        config: the `[train]` table; `mode` decides what is returned.
        rng: chooses batches and draws keys.

    Returns:
        A gradient of the mean loss (mode gradient) or local minus global parameters
        (mode update), on the CPU.
    """
    start = time.perf_counter()
    load_parameters(model, parameters)
    model.train()
    if config.mode == "gradient":
        arrays, examples, loss = _gradient(model, split, encoder, config, rng)
    else:
        arrays, examples, loss = _delta(model, parameters, split, encoder, config, rng)
    metrics = {"train_loss": loss, "seconds": time.perf_counter() - start}
    return ClientUpdate(arrays, examples, config.update_kind, metrics)


def load_parameters(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Copy parameters into a model, in place.

    Args:
        model: any module.
        parameters: by name, all of the model's, in its shapes.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameters[name])


def get_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's parameters by name, on the CPU, contiguous."""
    return {
        name: parameter.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, parameter in model.named_parameters()
    }


def _gradient(
    model: nn.Module,
    split: PrivateSplit,
    encoder: Encoder,
    config: TrainConfig,
    rng: np.random.Generator,
) -> tuple[dict[str, Tensor], int, float]:
    """Average the gradient over a round's batches; no parameter moves."""
    model.zero_grad(set_to_none=True)
    wanted = min(len(split), config.batch_size * config.local_batches)
    # Without replacement: an image is encoded at most once in a round.
    rows = torch.from_numpy(rng.choice(len(split), size=wanted, replace=False))
    total = 0.0
    for index in torch.split(rows, config.batch_size):
        batch, _ = encoder.encode(index, split, rng)
        share = len(index) / wanted
        loss = soft_cross_entropy(model(batch.images), batch.soft_targets) * share
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    gradient = {
        name: _portable(parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return gradient, wanted, total


def _delta(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    split: PrivateSplit,
    encoder: Encoder,
    config: TrainConfig,
    rng: np.random.Generator,
) -> tuple[dict[str, Tensor], int, float]:
    """Train for some epochs and return how far the parameters moved."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    total, seen = 0.0, 0
    for index in _epochs(len(split), config, rng):
        batch, _ = encoder.encode(index, split, rng)
        optimizer.zero_grad()
        loss = soft_cross_entropy(model(batch.images), batch.soft_targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * len(index)
        seen += len(index)
    delta = {
        name: _portable(parameter.detach().cpu() - parameters[name])
        for name, parameter in model.named_parameters()
    }
    return delta, len(split), total / max(1, seen)


def _epochs(
    count: int, config: TrainConfig, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Yield the batches of all local epochs, each epoch in a new random order."""
    for _ in range(config.local_epochs):
        order = torch.from_numpy(rng.permutation(count))
        yield from torch.split(order, config.batch_size)


def _portable(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
