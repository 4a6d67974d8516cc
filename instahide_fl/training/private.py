"""DP-SGD: what a client computes so that no single encoding shows in its update.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016 (arXiv:1607.00133),
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from instahide_fl.config import DefenseConfig, TrainConfig
from instahide_fl.defenses.example_gradients import (
    ExampleGradients,
    noisy_mean,
    poisson_sample,
)
from instahide_fl.encoding.encoder import Encoder
from instahide_fl.training.local import LocalTrainer, gradient_images, local_steps
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.types import PrivateSplit


@dataclass(frozen=True)
class PrivateGradient:
    """One noisy gradient.

    Attributes:
        arrays: The gradient by parameter name.
        loss: Mean loss of the sampled images; 0 for an empty sample.
        num_sampled: Size of the sample, which must not leave the client.
    """

    arrays: dict[str, Tensor]
    loss: float
    num_sampled: int


class PrivateGradients:
    """Computes the gradients of DP-SGD: each is a sample, clipped, summed and noised.

    Args:
        model: a network without BatchNorm.
        defense: The `[defense]` table: norm and noise.
    """

    def __init__(self, model: nn.Module, defense: DefenseConfig) -> None:
        self._defense = defense
        self._example_gradients = ExampleGradients(model, soft_cross_entropy)

    def compute(
        self,
        split: PrivateSplit,
        encoder: Encoder,
        expected_size: int,
        rng: np.random.Generator,
    ) -> PrivateGradient:
        """Compute the noisy gradient of a fresh sample at the present parameters.

        The sample is a Poisson sample: every image is in it with the same probability,
        whatever others are, so its size varies and it may be empty. The accountant
        assumes this, and that the sum is divided by the expected size: the true one
        would tell whether one image was there.

        Args:
            split: The client's private images.
            encoder: The encoder of the sample.
            expected_size: Mean size of a sample, at most the number of images.
            rng: The generator that draws the sample, then its keys, then the noise.
        """
        rows = poisson_sample(len(split), expected_size / len(split), rng)
        batch, _ = encoder.encode(rows, split, rng)
        max_norm = self._defense.max_gradient_norm
        total, loss = self._example_gradients.clipped_sum(batch, max_norm)
        deviation = self._defense.noise_multiplier * max_norm
        gradient = noisy_mean(total, deviation, expected_size, rng)
        return PrivateGradient(gradient, loss / max(1, len(batch)), len(batch))


class PrivateTrainer(LocalTrainer):
    """A `LocalTrainer` whose every gradient is one of DP-SGD.

    Args:
        model: a network without BatchNorm.
        config: The `[train]` table.
        defense: The `[defense]` table: norm and noise.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, defense: DefenseConfig
    ) -> None:
        super().__init__(model, config)
        self._private_gradients = PrivateGradients(model, defense)

    def _gradient(
        self, split: PrivateSplit, encoder: Encoder, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], int, float]:
        """Sample once, whatever the number of local batches: one noise, one release."""
        expected_size = gradient_images(len(split), self.config)
        private = self._private_gradients.compute(split, encoder, expected_size, rng)
        return private.arrays, expected_size, private.loss

    def _step_gradients(
        self, split: PrivateSplit, encoder: Encoder, rng: np.random.Generator
    ) -> Iterator[tuple[Tensor, int]]:
        """Set the parameters' gradients to a noisy one for each local step."""
        expected_size = min(len(split), self.config.batch_size)
        for _ in range(local_steps(len(split), self.config)):
            private = self._private_gradients.compute(
                split, encoder, expected_size, rng
            )
            for name, parameter in self._parameters.items():
                parameter.grad = private.arrays[name]
            # In float64, or the mean over all steps would be rounded to float32.
            loss = torch.tensor(private.loss, dtype=torch.float64)
            yield loss, private.num_sampled
