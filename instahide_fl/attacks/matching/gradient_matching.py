"""Gradient matching: the distance of a guess's update from the observed one.

Victims and restarts are computed side by side: every function here takes a leading
dimension V of independent problems. The gradient of a sum over it is the gradient of
each problem.
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
    """The statistics of a batch in each BatchNorm layer.

    Attributes:
        means: The means of each layer, f32[V,channels].
        variances: The variances of each layer, unbiased, f32[V,channels].
    """

    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]


def simulated_updates(victims: Victims, images: Tensor, soft_targets: Tensor) -> Arrays:
    """Compute the updates that clients would send for these images.

    Local steps are unrolled, so that the result can be differentiated.

    Args:
        victims: The V victims.
        images: The guessed images, normalised, in the order of the steps,
            f32[V,M,C,H,W].
        soft_targets: The guessed or known labels, f32[V,M,K].

    Returns:
        The updates by parameter name, f32[V,...].
    """
    parameters_dim = None if victims.shared else 0

    def update(parameters: Arrays, pixels: Tensor, labels: Tensor) -> Arrays:
        return _update(victims.model, victims.steps, parameters, pixels, labels)

    updates_of_all = vmap(update, in_dims=(parameters_dim, 0, 0))
    arrays: Arrays = updates_of_all(victims.parameters, images, soft_targets)
    return arrays


def _update(
    model: nn.Module, steps: Steps, parameters: Arrays, images: Tensor, labels: Tensor
) -> Arrays:
    def loss(arrays: Arrays, pixels: Tensor, targets: Tensor) -> Tensor:
        return soft_cross_entropy(functional_call(model, arrays, (pixels,)), targets)

    if steps.kind == "gradient":
        gradient: Arrays = grad(loss)(parameters, images, labels)
        return gradient
    if steps.rows:
        rows = torch.tensor(steps.rows, device=images.device)
        images, labels = images[rows], labels[rows]
    moving, velocity = dict(parameters), dict.fromkeys(parameters, torch.zeros(()))
    start = 0
    for size in steps.batch_sizes:
        part = slice(start, start + size)
        gradient = grad(loss)(moving, images[part], labels[part])
        for name, array in gradient.items():
            decayed = array + steps.weight_decay * moving[name]
            previous = velocity[name].to(decayed.device)
            velocity[name] = steps.momentum * previous + decayed
            moving[name] = moving[name] - steps.learning_rate * velocity[name]
        start += size
    return {name: moving[name] - array for name, array in parameters.items()}


def cosine_distance(guessed: Arrays, observed: Arrays) -> Tensor:
    """Return 1 - cosine of each pair of updates, with all layers as one vector.

    The distance of "Inverting Gradients" (Geiping et al., NeurIPS 2020, equation 4).

    Args:
        guessed: The updates of the guesses by parameter name, f32[V,...].
        observed: The observed updates by parameter name, f32[V,...].

    Returns:
        The distances, f32[V], from 0 to 2.
    """
    inner = sum(_dot(array, observed[name]) for name, array in guessed.items())
    guessed_square = sum(_dot(array, array) for array in guessed.values())
    observed_square = sum(_dot(array, array) for array in observed.values())
    assert isinstance(inner, Tensor)
    assert isinstance(guessed_square, Tensor)
    assert isinstance(observed_square, Tensor)
    norms = guessed_square.sqrt() * observed_square.sqrt()
    return 1 - inner / norms.clamp_min(1e-30)


def squared_distance(guessed: Arrays, observed: Arrays) -> Tensor:
    """Return the squared L2 distance of each pair of updates, f32[V].

    The distance of "Deep Leakage from Gradients" (Zhu et al., NeurIPS 2019).

    Args:
        guessed: The updates of the guesses by parameter name, f32[V,...].
        observed: The observed updates by parameter name, f32[V,...].
    """
    total = sum(
        _dot(array - observed[name], array - observed[name])
        for name, array in guessed.items()
    )
    assert isinstance(total, Tensor)
    return total


def total_variation(images: Tensor, of_absolute: bool) -> Tensor:
    """Return the anisotropic total variation, as a mean over pixels.

    Random signs make neighbours differ, so |x| is taken where signs are flipped.

    Args:
        images: The images, f32[V,M,C,H,W].
        of_absolute: Whether to take |x| first.

    Returns:
        The total variation of each problem's images, f32[V].
    """
    pixels = images.abs() if of_absolute else images
    across = (pixels[..., 1:] - pixels[..., :-1]).abs().flatten(1).mean(1)
    down = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().flatten(1).mean(1)
    return across + down


def layer_statistics(victims: Victims, images: Tensor) -> LayerStatistics:
    """Measure mean and variance at each BatchNorm layer, for the images of one step.

    Args:
        victims: The V victims.
        images: The guessed images, f32[V,M,C,H,W].
    """
    layers = [m for m in victims.model.modules() if isinstance(m, nn.BatchNorm2d)]

    def measure(parameters: Arrays, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
        moments: list[tuple[Tensor, Tensor]] = []
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, inputs: moments.append(_moments(inputs[0]))
            )
            for layer in layers
        ]
        try:
            functional_call(victims.model, parameters, (pixels,))
        finally:
            for hook in hooks:
                hook.remove()
        return moments

    parameters_dim = None if victims.shared else 0
    measured = vmap(measure, in_dims=(parameters_dim, 0))(victims.parameters, images)
    return LayerStatistics(
        tuple(mean for mean, _ in measured), tuple(variance for _, variance in measured)
    )


def statistics_distance(
    guessed: LayerStatistics, observed: LayerStatistics, first_weight: float = 10.0
) -> Tensor:
    """Return the sum over layers of |mean - mean'|_2 + |variance - variance'|_2.

    The prior of "See through Gradients" (Yin et al., CVPR 2021, equation 11).

    Args:
        guessed: The statistics of the guessed images.
        observed: The statistics of the victims' batches.
        first_weight: The factor of the first layer's term.

    Returns:
        The distances, f32[V].
    """
    means = zip(guessed.means, observed.means, strict=True)
    variances = zip(guessed.variances, observed.variances, strict=True)
    terms = [
        torch.linalg.vector_norm(mean - observed_mean, dim=1)
        + torch.linalg.vector_norm(variance - observed_variance, dim=1)
        for (mean, observed_mean), (variance, observed_variance) in zip(
            means, variances, strict=True
        )
    ]
    return torch.stack([first_weight * terms[0], *terms[1:]]).sum(0)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance by channel: [M,channels,H,W] -> [channels] each."""
    return features.mean((0, 2, 3)), features.var((0, 2, 3))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)  # [V,...] -> [V]
