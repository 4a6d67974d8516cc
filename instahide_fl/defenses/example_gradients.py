"""Gradients of single examples: clipped, added up, and hidden in noise (DP-SGD).

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016 (arXiv:1607.00133).
Single gradients come from `torch.func`, which differentiates any of our networks as it
is. Opacus' GradSampleModule does not: its hooks fail on torchvision's residual
networks, and on channels-last images (Opacus 1.6.0) its gradients of convolutions are
wrong without a word.
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

MAX_VALUES = 2**26  # of single gradients held at once: 256 MiB


class ExampleGradients:
    """Computes sums of clipped gradients of single examples.

    Args:
        model: any network whose output for an image depends on that image alone. Its
            forward pass keeps whatever layout images come in from now on.
        loss: from logits f32[1,K] and targets f32[1,K] to a number.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        accept_any_layout(model)
        self._parameters = dict(model.named_parameters())
        values = sum(one.numel() for one in self._parameters.values())
        self._at_once = max(1, MAX_VALUES // values)

        def loss_of_one(
            parameters: dict[str, Tensor], image: Tensor, target: Tensor
        ) -> Tensor:
            return loss(
                functional_call(model, parameters, (image[None],)), target[None]
            )

        self._of_each = vmap(
            grad_and_value(loss_of_one), in_dims=(None, 0, 0), randomness="different"
        )

    def clipped_sum(
        self, batch: EncodedBatch, max_norm: float
    ) -> tuple[dict[str, Tensor], float]:
        """Add up the examples' gradients, each scaled down to a norm.

        Args:
            batch: any number of encodings, also none.
            max_norm: L2 bound on the gradient of one example, over all parameters.

        Returns:
            The sum by parameter name, and the sum of losses.
        """
        parameters = {name: one.detach() for name, one in self._parameters.items()}
        total = {name: torch.zeros_like(one) for name, one in parameters.items()}
        losses = 0.0
        for start in range(0, len(batch), self._at_once):
            part = slice(start, start + self._at_once)
            gradients, loss = self._of_each(
                parameters, batch.images[part], batch.soft_targets[part]
            )
            factors = clip_factors(gradients, max_norm)
            for name, gradient in gradients.items():
                total[name] += torch.tensordot(factors, gradient, 1)
            losses += float(loss.sum())
        return total, losses


def clip_factors(gradients: Mapping[str, Tensor], max_norm: float) -> Tensor:
    """Return what each example's gradient is multiplied with: min(1, bound / norm).

    Args:
        gradients: f32[B,...] by parameter name.
        max_norm: positive.

    Returns:
        f32[B], in (0, 1].
    """
    squares = [
        torch.linalg.vector_norm(one.flatten(1), dim=1).double().square()
        for one in gradients.values()
    ]
    norms = torch.stack(squares).sum(0).sqrt()
    return (max_norm / norms.clamp_min(max_norm)).to(torch.float32)


def noisy_mean(
    total: Mapping[str, Tensor],
    deviation: float,
    expected: float,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Add noise to a sum and divide it by the number of parts that was expected.

    The true number would tell whether one part was there.

    Args:
        total: by parameter name.
        deviation: standard deviation of the noise on the sum.
        expected: positive.
        rng: draws the noise.
    """
    noisy = add_noise(total, deviation, rng)
    return {name: array / expected for name, array in noisy.items()}


def poisson_sample(count: int, rate: float, rng: np.random.Generator) -> Tensor:
    """Choose each of some examples independently: what accountants assume.

    Args:
        count: examples to choose from.
        rate: probability of each, in [0, 1].
        rng: chooses.

    Returns:
        i64[B], rows in order; may be empty.
    """
    return torch.from_numpy(np.flatnonzero(rng.random(count) < rate))
