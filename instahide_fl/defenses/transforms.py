"""Transforms of an update: arrays in, arrays out, chance by an explicit generator.

They act on parameters. Running statistics of BatchNorm are handed on as they are: they
are no part of a gradient, and differential privacy refuses networks that have them.
No transform makes an update longer (L2), except noise, so that a norm that was clipped
stays bounded by whatever follows.
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
    """Zero the entries of smallest magnitude, in each tensor for itself.

    Gradient pruning as a defence: Zhu et al., "Deep Leakage from Gradients", NeurIPS
    2019 (arXiv:1906.08935); per tensor as in GradAttack (Huang et al., NeurIPS 2021).

    Args:
        arrays: by name.
        share: in [0, 1); entries strictly below this quantile of the magnitudes become
            zero. Entries that equal it stay.
    """
    return {name: _prune(array, share) for name, array in arrays.items()}


def _prune(array: Tensor, share: float) -> Tensor:
    below = math.floor(share * array.numel())
    if below == 0:
        return array
    size = array.abs()
    threshold = size.flatten().kthvalue(below + 1).values
    return torch.where(size < threshold, torch.zeros_like(array), array)


def sign(arrays: Arrays) -> dict[str, Tensor]:
    """Keep the signs, times each tensor's mean magnitude.

    Scaled sign compression: Karimireddy et al., "Error Feedback Fixes SignSGD", ICML
    2019 (arXiv:1901.09847), there with the error that is fed back, here without.

    Args:
        arrays: by name.
    """
    return {name: a.sign() * a.abs().mean() for name, a in arrays.items()}


def clip(arrays: Arrays, max_norm: float) -> dict[str, Tensor]:
    """Scale an update down so that its L2 norm is at most a bound.

    McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR
    2018 (arXiv:1710.06963): flat clipping.

    Args:
        arrays: by name; the norm is over all of them together.
        max_norm: positive.

    Returns:
        By name; the arrays themselves where they are short enough.
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
        arrays: by name, floating point. Noise is drawn in the order of names.
        deviation: standard deviation, at least 0.
        rng: the operating system's stream for real clients; a seeded one hides nothing.
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
        like: floating point.
        deviation: standard deviation.
        rng: draws it in float64, so that rounding to float32 is the last step.
    """
    noise = rng.standard_normal(tuple(like.shape)) * deviation
    return torch.as_tensor(noise).to(like.device, like.dtype)


def l2_norm(arrays: Arrays) -> float:
    """Return the L2 norm over all arrays together, added up in float64.

    Args:
        arrays: by name; the sum is in the order of names.
    """
    squares = [
        float(torch.linalg.vector_norm(arrays[name], dtype=torch.float64)) ** 2
        for name in sorted(arrays)
    ]
    return math.sqrt(sum(squares))


def build_transforms(config: DefenseConfig) -> list[UpdateTransform]:
    """Return the transforms that the settings name, in their order.

    Args:
        config: the `[defense]` table.
    """
    deviation = config.noise_multiplier * config.clip_norm
    known: dict[str, UpdateTransform] = {
        "prune": lambda arrays, rng: prune(arrays, config.prune_share),
        "sign": lambda arrays, rng: sign(arrays),
        "clip": lambda arrays, rng: clip(arrays, config.clip_norm),
        "noise": lambda arrays, rng: add_noise(arrays, deviation, rng),
    }
    return [known[name] for name in config.transform_names]


def apply_transforms(
    arrays: Arrays,
    buffers: Collection[str],
    config: DefenseConfig,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Apply a client's transforms to its update.

    Args:
        arrays: of the update, by name; not written to.
        buffers: names of those that are running statistics, which stay as they are.
        config: the `[defense]` table.
        rng: draws the noise.
    """
    kept = {name: array for name, array in arrays.items() if name in buffers}
    moved = {name: array for name, array in arrays.items() if name not in buffers}
    for transform in build_transforms(config):
        moved = transform(moved, rng)
    return {**moved, **kept}
