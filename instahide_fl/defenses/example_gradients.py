"""Gradients of single examples: clipped, added up, and hidden in noise (DP-SGD).

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016 (arXiv:1607.00133).
`training.private` puts the parts together.

Single gradients come from `torch.func`, which differentiates any of our networks as it
is. Opacus' GradSampleModule does not: its hooks fail on torchvision's residual
networks, and on channels-last images (Opacus 1.6.0) it returns wrong gradients of
convolutions without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from instahide_fl.defenses.transforms import add_noise
from instahide_fl.models.layout import accept_any_layout
from instahide_fl.types import EncodedBatch

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]

MAX_VALUES = 2**26  # values of single gradients in memory at once: 256 MiB


class ExampleGradients:
    """Computes sums of clipped gradients of single examples.

    Args:
        model: Any network whose output for an image depends on that image alone. From
            now on its forward pass keeps the layout that images come in.
        loss: a function from logits f32[1,K] and targets f32[1,K] to a number.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        accept_any_layout(model)
        self._parameters = dict(model.named_parameters())
        num_values = sum(value.numel() for value in self._parameters.values())
        self._chunk = max(1, MAX_VALUES // num_values)

        def example_loss(
            parameters: dict[str, Tensor], image: Tensor, target: Tensor
        ) -> Tensor:
            # A batch of one: [C,H,W] -> [1,C,H,W], and [K] -> [1,K].
            return loss(
                functional_call(model, parameters, (image[None],)), target[None]
            )

        # Each example draws its own dropout mask, as it does in a batch.
        self._gradients_and_losses = vmap(
            grad_and_value(example_loss), in_dims=(None, 0, 0), randomness="different"
        )

    def clipped_sum(
        self, batch: EncodedBatch, max_norm: float
    ) -> tuple[dict[str, Tensor], float]:
        """Add up the examples' gradients, each scaled down to a norm.

        Args:
            batch: Any number of encodings; also none.
            max_norm: L2 bound on the gradient of one example, over all parameters.

        Returns:
            The sum by parameter name, and the sum of losses.
        """
        parameters = {name: value.detach() for name, value in self._parameters.items()}
        total = {name: torch.zeros_like(value) for name, value in parameters.items()}
        total_loss = 0.0
        for start in range(0, len(batch), self._chunk):
            rows = slice(start, start + self._chunk)
            gradients, losses = self._gradients_and_losses(
                parameters, batch.images[rows], batch.soft_targets[rows]
            )
            factors = clip_factors(gradients, max_norm)
            for name, gradient in gradients.items():
                total[name] += torch.tensordot(
                    factors, gradient, 1
                )  # [B],[B,...]->[...]
            total_loss += float(losses.sum())
        return total, total_loss


def clip_factors(gradients: Mapping[str, Tensor], max_norm: float) -> Tensor:
    """Return the factor that scales each example's gradient: min(1, bound / norm).

    Args:
        gradients: The examples' gradients by parameter name, f32[B,...].
        max_norm: The bound; positive.

    Returns:
        f32[B], in (0, 1].
    """
    squares = [
        # [B,...] -> [B,D] -> [B]
        torch.linalg.vector_norm(gradient.flatten(1), dim=1).double().square()
        for gradient in gradients.values()
    ]
    norms = torch.stack(squares).sum(0).sqrt()
    return (max_norm / norms.clamp_min(max_norm)).to(torch.float32)


def noisy_mean(
    total: Mapping[str, Tensor],
    deviation: float,
    expected_size: float,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Add noise to a sum and divide it by the expected number of its parts.

    The true number would tell whether one part was there.

    Args:
        total: The sum by parameter name.
        deviation: Standard deviation of the noise on the sum.
        expected_size: Expected number of parts; positive.
        rng: The generator that draws the noise.
    """
    noisy = add_noise(total, deviation, rng)
    return {name: array / expected_size for name, array in noisy.items()}


def poisson_sample(count: int, rate: float, rng: np.random.Generator) -> Tensor:
    """Choose each example independently, as the accountant assumes.

    Args:
        count: Number of examples.
        rate: Probability of each example, in [0, 1].
        rng: The generator that draws the sample.

    Returns:
        The chosen rows in order, i64[B]; may be empty.
    """
    return torch.from_numpy(np.flatnonzero(rng.random(count) < rate))
