"""Local training: what a client computes in a round."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from instahide_fl.config import TrainConfig
from instahide_fl.defenses.transforms import clip
from instahide_fl.encoding.encoder import Encoder
from instahide_fl.models.arrays import live_arrays, shared_buffers
from instahide_fl.models.normalization import single_values_explained
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.types import ClientUpdate, EncodedBatch, PrivateSplit


class LocalTrainer:
    """A network with its optimizer, which clients of a process use one after another.

    No client leaves anything in it: before each use the arrays are overwritten, the
    gradients dropped and the optimizer's state cleared.

    Args:
        model: a network of the right shape.
        config: The `[train]` table.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.device = next(model.parameters()).device
        self._parameters = dict(model.named_parameters())
        self._buffers = shared_buffers(model)
        self._arrays = live_arrays(model)
        self._optimizer = _build_optimizer(model, config)
        self._has_dropout = has_dropout(model)
        self._global_arrays: dict[str, Tensor] = {}  # the caller's own tensors
        self._start: dict[str, Tensor] = {}  # copies of them in the network's layout
        self._moved = True  # whether the network's arrays differ from `_start`

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
            arrays: The global arrays by name (`models.arrays`). They are not written
                to, and the caller must not write to them either as long as it passes
                the same tensors again.
            split: The client's private images, on the model's device.
            encoder: The encoder, whose encodings are what is trained on.
            rng: The generator that chooses batches and draws keys.
            learning_rate_factor: Factor of this round's schedule (mode update).
            correction: Terms added to the gradient of every local step, by parameter
                name (mode update; see `training.scaffold`); None for none.

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
                update, num_images, loss = self._gradient(split, encoder, rng)
            else:
                for group in self._optimizer.param_groups:
                    group["lr"] = self.config.learning_rate * learning_rate_factor
                update, num_images, loss = self._delta(split, encoder, rng, correction)
        metrics = {"train_loss": loss, "seconds": time.perf_counter() - start}
        return ClientUpdate(update, num_images, self.config.update_kind, metrics)

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
        if not self._has_dropout:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(draw_torch_seed(rng))
            yield

    def _load(self, arrays: Mapping[str, Tensor]) -> None:
        """Copy the global arrays into the network, unless they are there already.

        They are brought into the network's layout once a round, not for each client.
        In mode gradient no parameter moves, so a round's clients share one copy.
        """
        if not self._has_loaded(arrays):
            for name, array in self._arrays.items():
                if name not in self._start:
                    self._start[name] = torch.empty_like(array, requires_grad=False)
                self._start[name].copy_(arrays[name])
            self._global_arrays, self._moved = dict(arrays), True
        if self._moved:
            with torch.no_grad():
                for name, array in self._arrays.items():
                    array.copy_(self._start[name])
            self._moved = False

    def _has_loaded(self, arrays: Mapping[str, Tensor]) -> bool:
        """Tell whether these very tensors were loaded last."""
        loaded = self._global_arrays
        return loaded.keys() == arrays.keys() and all(
            array is loaded[name] for name, array in arrays.items()
        )

    def _loss(self, batch: EncodedBatch) -> Tensor:
        """Run the network, in the precision that the settings name."""
        # Running statistics move in the forward pass already.
        self._moved = self._moved or bool(self._buffers)
        low_precision = self.config.precision == "bfloat16"
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=low_precision),
            single_values_explained(),
        ):
            return soft_cross_entropy(self.model(batch.images), batch.soft_targets)

    def _drop_gradients(self) -> None:
        """Let the next backward pass write gradients instead of adding to them.

        `Optimizer.zero_grad` does the same in a tenth of a millisecond, which is much
        beside a small network's step on ten images.
        """
        for parameter in self._parameters.values():
            parameter.grad = None

    def _differences(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return how far arrays of the network are from the global ones."""
        with torch.no_grad():
            return {name: array - self._start[name] for name, array in arrays.items()}

    def _gradient(
        self, split: PrivateSplit, encoder: Encoder, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], int, float]:
        """Average the gradient over a round's batches; no parameter moves.

        Returns:
            The gradient and the differences of running statistics by name, the number
            of images, and their mean loss.
        """
        self._drop_gradients()
        num_images = gradient_images(len(split), self.config)
        losses: list[Tensor] = []
        for rows in batch_rows(len(split), self.config, rng):
            batch, _ = encoder.encode(rows, split, rng)
            share = len(rows) / num_images
            loss = self._loss(batch) * share
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        gradient = {
            name: parameter.grad
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        update = gradient | self._differences(self._buffers)
        return update, num_images, _weighted_sum(losses, [1] * len(losses))

    def _delta(
        self,
        split: PrivateSplit,
        encoder: Encoder,
        rng: np.random.Generator,
        correction: Mapping[str, Tensor] | None,
    ) -> tuple[dict[str, Tensor], int, float]:
        """Train for some epochs.

        Returns:
            How far the arrays moved by name, the client's number of images, and the
            mean loss over the images of all steps.
        """
        self._optimizer.state.clear()
        losses: list[Tensor] = []
        sizes: list[int] = []
        for loss, batch_size in self._step_gradients(split, encoder, rng):
            self._correct_gradient(correction)
            self._clip_gradient()
            self._optimizer.step()
            self._moved = True
            losses.append(loss)
            sizes.append(batch_size)
        mean_loss = _weighted_sum(losses, sizes) / max(1, sum(sizes))
        return self._differences(self._arrays), len(split), mean_loss

    def _step_gradients(
        self, split: PrivateSplit, encoder: Encoder, rng: np.random.Generator
    ) -> Iterator[tuple[Tensor, int]]:
        """Leave the gradient of each local step in the parameters, one after another.

        Yields:
            The mean loss of the step's batch, a scalar, and the batch's size.
        """
        for rows in batch_rows(len(split), self.config, rng):
            batch, _ = encoder.encode(rows, split, rng)
            self._drop_gradients()
            loss = self._loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            yield loss.detach(), len(rows)

    def _correct_gradient(self, correction: Mapping[str, Tensor] | None) -> None:
        """Add FedProx's and SCAFFOLD's terms to the gradient."""
        weight = self.config.proximal_mu
        if not weight and correction is None:
            return
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            if weight:
                drift = parameter.detach() - self._start[name]
                parameter.grad.add_(drift, alpha=weight)
            if correction is not None:
                parameter.grad.add_(correction[name].to(parameter.device))

    def _clip_gradient(self) -> None:
        """Scale the gradient of a step down to `train.clip-norm`, if there is one."""
        if not self.config.clip_norm:
            return
        gradients = {
            name: parameter.grad
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        clipped = clip(gradients, self.config.clip_norm)
        for name, gradient in clipped.items():
            self._parameters[name].grad = gradient


def _weighted_sum(losses: Sequence[Tensor], weights: Sequence[int]) -> float:
    """Add up the losses of all steps, which is when a GPU's steps are waited for."""
    total = 0.0
    values: list[float] = torch.stack(list(losses)).tolist() if losses else []
    for value, weight in zip(values, weights, strict=True):
        total += value * weight
    return total


def _build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of local steps, which a client may change the rate of."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), rate, weight_decay=decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
    return torch.optim.SGD(
        model.parameters(), rate, momentum=config.momentum, weight_decay=decay
    )


def warm_up(
    model: nn.Module, image_shape: tuple[int, int, int], config: TrainConfig
) -> None:
    """Take one optimizer step on black images, so that no client pays for the first.

    PyTorch loads parts of itself on first use: that takes over a second.

    Args:
        model: a network of the run's shape; its parameters move.
        image_shape: (channels, height, width).
        config: The `[train]` table.
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
        count: Number of the client's images.
        config: The `[train]` table.
    """
    return config.local_epochs * math.ceil(count / config.batch_size)


def smallest_batch(count: int, config: TrainConfig) -> int:
    """Return the number of images in the smallest batch of a round.

    Args:
        count: Number of the client's images.
        config: The `[train]` table.
    """
    if config.mode == "gradient":
        count = gradient_images(count, config)
    return count % config.batch_size or min(count, config.batch_size)


def gradient_images(count: int, config: TrainConfig) -> int:
    """Return how many images the gradient of a round is the mean of (mode gradient).

    Args:
        count: Number of the client's images.
        config: The `[train]` table.
    """
    return min(count, config.batch_size * config.local_batches)


def batch_rows(
    count: int, config: TrainConfig, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Yield the rows of each batch of a round.

    They are drawn when they are asked for: the batches' keys come from the same stream
    in between, and whoever replays a client must draw in the same order.

    Args:
        count: Number of the client's images.
        config: The `[train]` table.
        rng: The client's stream for this round.

    Yields:
        i64[B] for each batch.
    """
    if config.mode == "gradient":
        num_images = gradient_images(count, config)
        # Without replacement: an image is encoded at most once in a round.
        rows = torch.from_numpy(rng.choice(count, size=num_images, replace=False))
        for start in range(0, num_images, config.batch_size):
            yield rows[start : start + config.batch_size]
        return
    for _ in range(config.local_epochs):
        order = torch.from_numpy(rng.permutation(count))
        yield from torch.split(order, config.batch_size)


def has_dropout(model: nn.Module) -> bool:
    """Tell whether a network drops units at random."""
    return any(isinstance(module, nn.Dropout) for module in model.modules())


def draw_torch_seed(rng: np.random.Generator) -> int:
    """Draw the seed of dropout's masks: the first draw of a client's round."""
    return int(rng.integers(2**63))
