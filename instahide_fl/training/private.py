"""DP-SGD: what a client computes so that no single encoding shows in its update."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

from instahide_fl.config import DefenseConfig, TrainConfig
from instahide_fl.defenses.example_gradients import (
    ExampleGradients,
    noisy_mean,
    poisson_sample,
)
from instahide_fl.encoding.encoder import Encoder
from instahide_fl.training.local import LocalTrainer, local_steps
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.types import EncodedBatch, PrivateSplit


class PrivateTrainer(LocalTrainer):
    """A `LocalTrainer` whose every gradient is one of DP-SGD.

    Batches are Poisson samples: every image is in one with the same probability,
    whatever others are, so their sizes vary and one may be empty. Sums are divided by
    the expected size, which is all that is told of it.

    Args:
        model: a network without BatchNorm.
        config: the `[train]` table.
        defense: the `[defense]` table: norm and noise.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, defense: DefenseConfig
    ) -> None:
        super().__init__(model, config)
        self._defense = defense
        self._examples = ExampleGradients(model, soft_cross_entropy)
        self._expected = 1.0

    def _gradient(
        self, split: PrivateSplit, encoder: Encoder, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], int, float]:
        """Sample once, whatever the number of local batches: one noise, one release."""
        wanted = min(len(split), self.config.batch_size * self.config.local_batches)
        self._expected = wanted
        rows = poisson_sample(len(split), wanted / len(split), rng)
        batch, _ = encoder.encode(rows, split, rng)
        gradient, loss = self._private_gradient(batch, rng)
        return gradient, wanted, loss

    def _batches(self, count: int, rng: np.random.Generator) -> Iterator[Tensor]:
        self._expected = min(count, self.config.batch_size)
        for _ in range(local_steps(count, self.config)):
            yield poisson_sample(count, self._expected / count, rng)

    def _set_gradient(self, batch: EncodedBatch, rng: np.random.Generator) -> float:
        gradient, loss = self._private_gradient(batch, rng)
        for name, parameter in self._parameters.items():
            parameter.grad = gradient[name]
        return loss

    def _private_gradient(
        self, batch: EncodedBatch, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], float]:
        norm = self._defense.max_gradient_norm
        total, loss = self._examples.clipped_sum(batch, norm)
        deviation = self._defense.noise_multiplier * norm
        gradient = noisy_mean(total, deviation, self._expected, rng)
        return gradient, loss / max(1, len(batch))
