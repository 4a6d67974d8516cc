"""Transforms of an update: pruning, sign compression, clipping and noise.

They act on parameters. BatchNorm's running statistics pass unchanged: they are no part
of a gradient, and differential privacy refuses networks that have them. Except for
noise no transform increases an update's L2 norm, so a norm that was clipped stays
bounded under whatever follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from instahide_fl.config import DefenseConfig

Arrays: TypeAlias = Mapping[str, Tensor]
UpdateTransform: TypeAlias = Callable[[Arrays, np.random.Generator], dict[str, Tensor]]


def prune(arrays: Arrays, share: float) -> dict[str, Tensor]:
    """Set the entries of smallest magnitude to zero, in each tensor by itself.

    Gradient pruning as a defence: Zhu et al., "Deep Leakage from Gradients", NeurIPS
    2019 (arXiv:1906.08935); per tensor as in GradAttack (Huang et al., NeurIPS 2021).

    Args:
        arrays: The update's parameters by name.
        share: a quantile of the magnitudes, in [0, 1); entries strictly below it become
            zero, entries that equal it stay.
    """
    return {name: _prune(array, share) for name, array in arrays.items()}


def _prune(array: Tensor, share: float) -> Tensor:
    num_pruned = math.floor(share * array.numel())
    if num_pruned == 0:
        return array
    magnitude = array.abs()
    threshold = magnitude.flatten().kthvalue(num_pruned + 1).values
    return torch.where(magnitude < threshold, torch.zeros_like(array), array)


def sign(arrays: Arrays) -> dict[str, Tensor]:
    """Replace each entry by its sign times the tensor's mean magnitude.

    Scaled sign compression: Karimireddy et al., "Error Feedback Fixes SignSGD", ICML
    2019 (arXiv:1901.09847), without the paper's error feedback.

    Args:
        arrays: The update's parameters by name.
    """
    return {name: a.sign() * a.abs().mean() for name, a in arrays.items()}


def clip(arrays: Arrays, max_norm: float) -> dict[str, Tensor]:
    """Scale an update down so that its L2 norm is at most a bound.

    McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR
    2018 (arXiv:1710.06963): flat clipping.

    Args:
        arrays: The update's parameters by name; the norm is over all of them together.
        max_norm: The bound; positive.

    Returns:
        The clipped arrays by name; the same tensors if the norm is within the bound.
    """
    norm = l2_norm(arrays)
    if norm <= max_norm:
        return dict(arrays)
    return {name: array * (max_norm / norm) for name, array in arrays.items()}


def add_noise(
    arrays: Arrays, deviation: float, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Add independent Gaussian noise to every entry.

    Args:
        arrays: Floating-point arrays by name. Noise is drawn in the order of names.
        deviation: Standard deviation, at least 0.
        rng: The operating system's stream for real clients; a seeded one hides nothing.
    """
    if deviation == 0:
        return dict(arrays)
    return {
        name: arrays[name] + gaussian(arrays[name], deviation, rng)
        for name in sorted(arrays)
    }


def gaussian(like: Tensor, deviation: float, rng: np.random.Generator) -> Tensor:
    """Return Gaussian noise in a tensor's shape and dtype, on its device.

    Args:
        like: a floating-point tensor.
        deviation: Standard deviation.
        rng: The generator that draws the noise, in float64, so that rounding to float32
            is the last step.
    """
    noise = rng.standard_normal(tuple(like.shape)) * deviation
    return torch.as_tensor(noise).to(like.device, like.dtype)


def l2_norm(arrays: Arrays) -> float:
    """Return the L2 norm over all arrays together, added up in float64.

    Args:
        arrays: Arrays by name. They are added in the order of names, so that the last
            bits do not depend on the mapping's order.
    """
    squares = [
        float(torch.linalg.vector_norm(arrays[name], dtype=torch.float64)) ** 2
        for name in sorted(arrays)
    ]
    return math.sqrt(sum(squares))


def build_transforms(config: DefenseConfig) -> list[UpdateTransform]:
    """Return the transforms that the settings name, in their order.

    Args:
        config: The `[defense]` table.
    """
    deviation = config.noise_multiplier * config.clip_norm
    transforms: dict[str, UpdateTransform] = {
        "prune": lambda arrays, rng: prune(arrays, config.prune_share),
        "sign": lambda arrays, rng: sign(arrays),
        "clip": lambda arrays, rng: clip(arrays, config.clip_norm),
        "noise": lambda arrays, rng: add_noise(arrays, deviation, rng),
    }
    return [transforms[name] for name in config.transform_names]


def apply_transforms(
    arrays: Arrays,
    buffers: Collection[str],
    config: DefenseConfig,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Apply a client's transforms to its update.

    Args:
        arrays: The update's arrays by name; not written to.
        buffers: Names of the arrays that are running statistics, which stay unchanged.
        config: The `[defense]` table.
        rng: The generator that draws the noise.
    """
    statistics = {name: array for name, array in arrays.items() if name in buffers}
    parameters = {name: array for name, array in arrays.items() if name not in buffers}
    for transform in build_transforms(config):
        parameters = transform(parameters, rng)
    return {**parameters, **statistics}
