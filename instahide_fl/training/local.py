"""What a client computes in a round."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from instahide_fl.config import TrainConfig
from instahide_fl.encoding.encoder import Encoder
from instahide_fl.models.arrays import live_arrays, shared_buffers
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.types import ClientUpdate, EncodedBatch, PrivateSplit


class LocalTrainer:
    """A network with its optimizer, which clients of a process use one after another.

    Nothing of a client stays in it: arrays are overwritten, gradients dropped and the
    optimizer's state is cleared before each use.

    Args:
        model: a network of the right shape.
        config: the `[train]` table.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.device = next(model.parameters()).device
        self._parameters = dict(model.named_parameters())
        self._buffers = shared_buffers(model)
        self._arrays = live_arrays(model)
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self._draws = has_dropout(model)
        self._given: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}  # what was given, in the network's layout
        self._moved = True

    @property
    def buffers(self) -> Collection[str]:
        """Names of the arrays that are running statistics, not parameters."""
        return self._buffers.keys()

    def update(
        self,
        arrays: Mapping[str, Tensor],
        split: PrivateSplit,
        encoder: Encoder,
        rng: np.random.Generator,
        learning_rate_factor: float = 1.0,
        correction: Mapping[str, Tensor] | None = None,
    ) -> ClientUpdate:
        """Compute a client's contribution to a round, on encodings only.

        Args:
            arrays: the global ones, by name (`models.arrays`); not written to, and not
                to be written to by the caller as long as it hands on the same tensors.
            split: the client's private images, on the model's device.
            encoder: turns images into what is trained on.
            rng: chooses batches and draws keys.
            learning_rate_factor: of this round's schedule (mode update).
            correction: added to the gradient of every local step, by parameter name
                (mode update; see `training.scaffold`); None for none.

        Returns:
            A gradient of the mean loss (mode gradient) or local minus global parameters
            (mode update), and local minus global running statistics, on the model's
            device and in its layout, in memory of its own.
        """
        start = time.perf_counter()
        self._load(arrays)
        if not self.model.training:
            self.model.train()
        with self._seeded(rng):
            if self.config.mode == "gradient":
                result, examples, loss = self._gradient(split, encoder, rng)
            else:
                for group in self._optimizer.param_groups:
                    group["lr"] = self.config.learning_rate * learning_rate_factor
                result, examples, loss = self._delta(split, encoder, rng, correction)
        metrics = {"train_loss": loss, "seconds": time.perf_counter() - start}
        return ClientUpdate(result, examples, self.config.update_kind, metrics)

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
            torch.manual_seed(draw_torch_seed(rng))
            yield

    def _load(self, arrays: Mapping[str, Tensor]) -> None:
        """Copy the global arrays into the network, unless they are there already.

        They are brought into the network's layout once a round, not for each client.
        In mode gradient nobody moves them, so a round's clients share one copy.
        """
        known = self._given.keys() == arrays.keys()
        if not known or any(arrays[n] is not one for n, one in self._given.items()):
            for name, array in self._arrays.items():
                if name not in self._start:
                    self._start[name] = torch.empty_like(array, requires_grad=False)
                self._start[name].copy_(arrays[name])
            self._given, self._moved = dict(arrays), True
        if self._moved:
            with torch.no_grad():
                for name, array in self._arrays.items():
                    array.copy_(self._start[name])
            self._moved = False

    def _loss(self, batch: EncodedBatch) -> Tensor:
        """Run the network, in the precision that the settings name."""
        # Running statistics move in the forward pass already.
        self._moved = self._moved or bool(self._buffers)
        mixed = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            return soft_cross_entropy(self.model(batch.images), batch.soft_targets)

    def _differences(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            return {name: array - self._start[name] for name, array in arrays.items()}

    def _gradient(
        self, split: PrivateSplit, encoder: Encoder, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], int, float]:
        """Average the gradient over a round's batches; no parameter moves."""
        self._optimizer.zero_grad()
        batch_size = self.config.batch_size
        wanted = min(len(split), batch_size * self.config.local_batches)
        total = 0.0
        for index in batch_rows(len(split), self.config, rng):
            batch, _ = encoder.encode(index, split, rng)
            share = len(index) / wanted
            loss = self._loss(batch) * share
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        gradient = {
            name: parameter.grad
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        return gradient | self._differences(self._buffers), wanted, total

    def _delta(
        self,
        split: PrivateSplit,
        encoder: Encoder,
        rng: np.random.Generator,
        correction: Mapping[str, Tensor] | None,
    ) -> tuple[dict[str, Tensor], int, float]:
        """Train for some epochs and return how far the arrays moved."""
        self._optimizer.state.clear()
        total, seen = 0.0, 0
        for index in self._batches(len(split), rng):
            batch, _ = encoder.encode(index, split, rng)
            loss = self._set_gradient(batch, rng)
            self._correct_gradient(correction)
            self._optimizer.step()
            self._moved = True
            total += loss * len(index)
            seen += len(index)
        return self._differences(self._arrays), len(split), total / max(1, seen)

    def _batches(self, count: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield the batches of all local epochs, each epoch in a new random order."""
        yield from batch_rows(count, self.config, rng)

    def _set_gradient(self, batch: EncodedBatch, rng: np.random.Generator) -> float:
        """Leave the gradient of a batch's mean loss in the parameters."""
        self._optimizer.zero_grad()
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _correct_gradient(self, correction: Mapping[str, Tensor] | None) -> None:
        """Add FedProx's and SCAFFOLD's terms to the gradient."""
        weight = self.config.proximal_mu
        if not weight and correction is None:
            return
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            if weight:
                moved = parameter.detach() - self._start[name]
                parameter.grad.add_(moved, alpha=weight)
            if correction is not None:
                parameter.grad.add_(correction[name].to(parameter.device))


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
    arrays: Mapping[str, Tensor],
    split: PrivateSplit,
    encoder: Encoder,
    config: TrainConfig,
    rng: np.random.Generator,
) -> ClientUpdate:
    """Compute one client's contribution to a round; see `LocalTrainer.update`."""
    return LocalTrainer(model, config).update(arrays, split, encoder, rng)


def local_steps(count: int, config: TrainConfig) -> int:
    """Return the optimizer steps that a client takes in a round (mode update).

    Args:
        count: images it holds.
        config: the `[train]` table.
    """
    return config.local_epochs * math.ceil(count / config.batch_size)


def batch_rows(
    count: int, config: TrainConfig, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Yield which images each batch of a round is made of, drawn when it is asked for.

    Args:
        count: images that the client holds.
        config: the `[train]` table.
        rng: of the client in this round; keys are drawn from it between batches.

    Returns:
        i64[B] for each batch.
    """
    if config.mode == "gradient":
        wanted = min(count, config.batch_size * config.local_batches)
        # Without replacement: an image is encoded at most once in a round.
        rows = torch.from_numpy(rng.choice(count, size=wanted, replace=False))
        for start in range(0, wanted, config.batch_size):
            yield rows[start : start + config.batch_size]
        return
    for _ in range(config.local_epochs):
        order = torch.from_numpy(rng.permutation(count))
        yield from torch.split(order, config.batch_size)


def has_dropout(model: nn.Module) -> bool:
    """Tell whether a network drops units at random."""
    return any(isinstance(one, nn.Dropout) for one in model.modules())


def draw_torch_seed(rng: np.random.Generator) -> int:
    """Draw the seed of dropout's masks, the first that is drawn in a round."""
    return int(rng.integers(2**63))
