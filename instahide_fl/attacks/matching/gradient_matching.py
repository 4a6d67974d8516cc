"""Gradient matching: how far the update of guessed images is from the one observed.

Victims and restarts are computed side by side: every function here takes a leading
dimension V of independent problems, and sums over it have independent gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from instahide_fl.attacks.matching.victims import Steps, Victims
from instahide_fl.training.losses import soft_cross_entropy

Arrays: TypeAlias = dict[str, Tensor]
Distance: TypeAlias = Callable[[Arrays, Arrays], Tensor]


@dataclass(frozen=True)
class LayerStatistics:
    """What BatchNorm layers measured on a batch, layer by layer.

    Attributes:
        means: f32[V,channels] each.
        variances: f32[V,channels] each, unbiased.
    """

    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]


def simulated_updates(victims: Victims, images: Tensor, soft_targets: Tensor) -> Arrays:
    """Compute what clients would send for these images.

    Local steps are unrolled, so that the result can be differentiated.

    Args:
        victims: V of them.
        images: f32[V,M,C,H,W], normalised, in the order of the steps.
        soft_targets: f32[V,M,K].

    Returns:
        By parameter name, f32[V,...].
    """
    dims = None if victims.shared else 0

    def one(parameters: Arrays, pixels: Tensor, labels: Tensor) -> Arrays:
        return _update(victims.model, victims.steps, parameters, pixels, labels)

    both = vmap(one, in_dims=(dims, 0, 0))
    arrays: Arrays = both(victims.parameters, images, soft_targets)
    return arrays


def _update(
    model: nn.Module, steps: Steps, parameters: Arrays, images: Tensor, labels: Tensor
) -> Arrays:
    def loss(arrays: Arrays, pixels: Tensor, targets: Tensor) -> Tensor:
        return soft_cross_entropy(functional_call(model, arrays, (pixels,)), targets)

    if steps.kind == "gradient":
        gradient: Arrays = grad(loss)(parameters, images, labels)
        return gradient
    moving, velocity = dict(parameters), dict.fromkeys(parameters, torch.zeros(()))
    start = 0
    for size in steps.batch_sizes:
        part = slice(start, start + size)
        gradient = grad(loss)(moving, images[part], labels[part])
        for name, slope in gradient.items():
            slope = slope + steps.weight_decay * moving[name]
            velocity[name] = steps.momentum * velocity[name].to(slope.device) + slope
            moving[name] = moving[name] - steps.learning_rate * velocity[name]
        start += size
    return {name: moving[name] - array for name, array in parameters.items()}


def cosine_distance(found: Arrays, wanted: Arrays) -> Tensor:
    """Return 1 - cosine of each pair of updates, all layers as one vector.

    The distance of "Inverting Gradients" (Geiping et al., NeurIPS 2020, equation 4).

    Args:
        found: f32[V,...] by name.
        wanted: f32[V,...] by name.

    Returns:
        f32[V], 0 to 2.
    """
    inner = sum(_dot(array, wanted[name]) for name, array in found.items())
    own = sum(_dot(array, array) for array in found.values())
    other = sum(_dot(array, array) for array in wanted.values())
    assert isinstance(inner, Tensor)
    assert isinstance(own, Tensor)
    assert isinstance(other, Tensor)
    return 1 - inner / (own.sqrt() * other.sqrt()).clamp_min(1e-30)


def squared_distance(found: Arrays, wanted: Arrays) -> Tensor:
    """Return the squared L2 distance of each pair of updates, as f32[V].

    The distance of "Deep Leakage from Gradients" (Zhu et al., NeurIPS 2019).
    """
    total = sum(
        _dot(array - wanted[name], array - wanted[name])
        for name, array in found.items()
    )
    assert isinstance(total, Tensor)
    return total


def total_variation(images: Tensor, of_absolute: bool) -> Tensor:
    """Return the anisotropic total variation, a mean over pixels.

    Random signs make neighbours differ, so for sign-flipped images it is that of |x|.

    Args:
        images: f32[V,M,C,H,W].
        of_absolute: whether to take |x| first.

    Returns:
        f32[V].
    """
    pixels = images.abs() if of_absolute else images
    across = (pixels[..., 1:] - pixels[..., :-1]).abs().flatten(1).mean(1)
    down = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().flatten(1).mean(1)
    return across + down


def layer_statistics(victims: Victims, images: Tensor) -> LayerStatistics:
    """Measure what reaches the BatchNorm layers, for the images of one step.

    Args:
        victims: V of them.
        images: f32[V,M,C,H,W].
    """
    layers = [m for m in victims.model.modules() if isinstance(m, nn.BatchNorm2d)]

    def one(parameters: Arrays, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
        seen: list[tuple[Tensor, Tensor]] = []
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, given: seen.append(_moments(given[0]))
            )
            for layer in layers
        ]
        try:
            functional_call(victims.model, parameters, (pixels,))
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    dims = None if victims.shared else 0
    measured = vmap(one, in_dims=(dims, 0))(victims.parameters, images)
    return LayerStatistics(
        tuple(mean for mean, _ in measured), tuple(spread for _, spread in measured)
    )


def statistics_distance(
    found: LayerStatistics, wanted: LayerStatistics, first_weight: float = 10.0
) -> Tensor:
    """Return the sum over layers of |mean - mean'|_2 + |variance - variance'|_2.

    The prior of "See through Gradients" (Yin et al., CVPR 2021, equation 11).

    Args:
        found: of guessed images.
        wanted: of the victims' batches.
        first_weight: what the first layer's term is multiplied with.

    Returns:
        f32[V].
    """
    terms = [
        torch.linalg.vector_norm(mean - known, dim=1)
        + torch.linalg.vector_norm(variance - spread, dim=1)
        for mean, known, variance, spread in zip(
            found.means, wanted.means, found.variances, wanted.variances, strict=True
        )
    ]
    return torch.stack([first_weight * terms[0], *terms[1:]]).sum(0)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean((0, 2, 3)), features.var((0, 2, 3))


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).flatten(1).sum(1)
