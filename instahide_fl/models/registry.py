"""The networks that can be trained, by name."""

from __future__ import annotations

import torch
from torch import nn

from instahide_fl.config import ModelConfig
from instahide_fl.errors import ConfigError
from instahide_fl.models.cnn import SmallCnn
from instahide_fl.rng import torch_seed

MODELS = {"small-cnn": SmallCnn}


def build_model(
    config: ModelConfig,
    image_shape: tuple[int, int, int],
    num_classes: int,
    seed: int,
) -> nn.Module:
    """Build a network with parameters drawn from the seed.

    Args:
        config: the `[model]` table.
        image_shape: C, H, W.
        num_classes: K.
        seed: of the run; the same seed gives the same parameters.

    Returns:
        A module from f32[B,C,H,W] to logits f32[B,K], on the CPU, in channels-last
        layout (half as fast again as channels-first on the CPUs we measured).

    Raises:
        ConfigError: the images are too small for the network.
    """
    if min(image_shape[1:]) < 4:
        raise ConfigError(
            f"model.name = {config.name!r} needs images of at least 4x4 pixels, got "
            f"{image_shape[1]}x{image_shape[2]}: set data.image-size"
        )
    # torch initialises layers from its global generator: borrow it and give it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "model", config.name))
        model = MODELS[config.name](image_shape, num_classes, config)
    return model.to(memory_format=torch.channels_last)
