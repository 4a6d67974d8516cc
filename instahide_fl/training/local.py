"""What a client computes in a round."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from instahide_fl.config import TrainConfig
from instahide_fl.encoding.encoder import Encoder
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.types import ClientUpdate, PrivateSplit


class LocalTrainer:
    """A network with its optimizer, which clients of a process use one after another.

    Nothing of a client stays in it: parameters are overwritten, gradients dropped and
    the optimizer's state is cleared before each use.

    Args:
        model: a network of the right shape.
        config: the `[train]` table.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.device = next(model.parameters()).device
        self._parameters = dict(model.named_parameters())
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self._draws = any(isinstance(one, nn.Dropout) for one in model.modules())
        self._given: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}  # what was given, in the network's layout
        self._moved = True

    def update(
        self,
        parameters: Mapping[str, Tensor],
        split: PrivateSplit,
        encoder: Encoder,
        rng: np.random.Generator,
    ) -> ClientUpdate:
        """Compute a client's contribution to a round, on encodings only.

        Args:
            parameters: the global ones, by name; not written to, and not to be written
                to by the caller as long as it hands on the same tensors.
            split: the client's private images, on the model's device.
            encoder: turns images into what is trained on.
            rng: chooses batches and draws keys.

        Returns:
            A gradient of the mean loss (mode gradient) or local minus global parameters
            (mode update), on the model's device and in its layout, in memory of its
            own.
        """
        start = time.perf_counter()
        self._load(parameters)
        if not self.model.training:
            self.model.train()
        with self._seeded(rng):
            if self.config.mode == "gradient":
                arrays, examples, loss = self._gradient(split, encoder, rng)
            else:
                arrays, examples, loss = self._delta(split, encoder, rng)
        metrics = {"train_loss": loss, "seconds": time.perf_counter() - start}
        return ClientUpdate(arrays, examples, self.config.update_kind, metrics)

    def warm_up(self, image_shape: tuple[int, int, int]) -> None:
        """Take one step on black images; the parameters move."""
        images = torch.zeros(2, *image_shape, device=self.device)
        self._optimizer.zero_grad()
        self.model(images).sum().backward()
        self._optimizer.step()
        self._moved = True

    @contextlib.contextmanager
    def _seeded(self, rng: np.random.Generator) -> Iterator[None]:
        """Let dropout, which draws from torch's own generators, follow `rng`."""
        if not self._draws:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(rng.integers(2**63)))
            yield

    def _load(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy the global parameters into the network, unless they are there already.

        They are brought into the network's layout once a round, not for each client.
        In mode gradient nobody moves them, so a round's clients share one copy.
        """
        known = self._given.keys() == parameters.keys()
        if not known or any(parameters[n] is not one for n, one in self._given.items()):
            for name, parameter in self._parameters.items():
                if name not in self._start:
                    self._start[name] = torch.empty_like(parameter, requires_grad=False)
                self._start[name].copy_(parameters[name])
            self._given, self._moved = dict(parameters), True
        if self._moved:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(self._start[name])
            self._moved = False

    def _gradient(
        self, split: PrivateSplit, encoder: Encoder, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], int, float]:
        """Average the gradient over a round's batches; no parameter moves."""
        self._optimizer.zero_grad()
        batch_size = self.config.batch_size
        wanted = min(len(split), batch_size * self.config.local_batches)
        # Without replacement: an image is encoded at most once in a round.
        rows = torch.from_numpy(rng.choice(len(split), size=wanted, replace=False))
        total = 0.0
        for index in torch.split(rows, batch_size):
            batch, _ = encoder.encode(index, split, rng)
            logits = self.model(batch.images)
            share = len(index) / wanted
            loss = soft_cross_entropy(logits, batch.soft_targets) * share
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        gradient = {
            name: parameter.grad
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        return gradient, wanted, total

    def _delta(
        self, split: PrivateSplit, encoder: Encoder, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], int, float]:
        """Train for some epochs and return how far the parameters moved."""
        self._optimizer.state.clear()
        total, seen = 0.0, 0
        for index in _epochs(len(split), self.config, rng):
            batch, _ = encoder.encode(index, split, rng)
            self._optimizer.zero_grad()
            loss = soft_cross_entropy(self.model(batch.images), batch.soft_targets)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._moved = True
            total += loss.item() * len(index)
            seen += len(index)
        with torch.no_grad():
            delta = {
                name: parameter - self._start[name]
                for name, parameter in self._parameters.items()
            }
        return delta, len(split), total / max(1, seen)


def warm_up(
    model: nn.Module, image_shape: tuple[int, int, int], config: TrainConfig
) -> None:
    """Take one optimizer step on black images, so that no client pays for the first.

    PyTorch loads parts of itself on first use: that takes over a second.

    Args:
        model: of the run's shape; its parameters move.
        image_shape: (channels, height, width).
        config: the `[train]` table.
    """
    LocalTrainer(model, config).warm_up(image_shape)


def local_update(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    split: PrivateSplit,
    encoder: Encoder,
    config: TrainConfig,
    rng: np.random.Generator,
) -> ClientUpdate:
    """Compute one client's contribution to a round; see `LocalTrainer.update`."""
    return LocalTrainer(model, config).update(parameters, split, encoder, rng)


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


def _epochs(
    count: int, config: TrainConfig, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Yield the batches of all local epochs, each epoch in a new random order."""
    for _ in range(config.local_epochs):
        order = torch.from_numpy(rng.permutation(count))
        yield from torch.split(order, config.batch_size)
