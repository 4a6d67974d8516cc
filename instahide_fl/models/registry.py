"""The networks that can be trained, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

from instahide_fl.config import ModelConfig
from instahide_fl.errors import ConfigError
from instahide_fl.models.cnn import DropoutCnn, LeNet, SmallCnn
from instahide_fl.models.preact_resnet import PreActResNet18
from instahide_fl.models.resnet9 import ResNet9
from instahide_fl.models.sign_invariance import make_sign_invariant
from instahide_fl.models.strided import Mlp, StridedCnn, StridedLeNet
from instahide_fl.models.torchvision_models import densenet121, resnet18, resnet50
from instahide_fl.rng import torch_seed

ImageShape: TypeAlias = tuple[int, int, int]
MODELS: dict[str, Callable[[ImageShape, int, ModelConfig], nn.Module]] = {
    "small-cnn": SmallCnn,
    "lenet": LeNet,
    "cnn-dropout": DropoutCnn,
    "resnet-18": resnet18,
    "resnet-50": resnet50,
    "preact-resnet-18": PreActResNet18,
    "resnet-9": ResNet9,
    "densenet-121": densenet121,
    "mlp": Mlp,
    "strided-cnn": StridedCnn,
    "strided-lenet": StridedLeNet,
}
MIN_IMAGE_SIDE = {  # in pixels; a smaller image leaves a layer without input
    "small-cnn": 4,
    "lenet": 12,
    "cnn-dropout": 6,
    "resnet-18": 8,
    "resnet-50": 8,
    "preact-resnet-18": 8,
    "resnet-9": 8,
    "densenet-121": 8,
    "mlp": 1,
    "strided-cnn": 1,
    "strided-lenet": 1,
}
WITHOUT_NORMALIZATION = ("lenet", "cnn-dropout", "mlp", "strided-lenet")
WITH_ACTIVATIONS = ("small-cnn", "lenet", "mlp", "strided-cnn", "strided-lenet")


def build_model(
    config: ModelConfig,
    image_shape: tuple[int, int, int],
    num_classes: int,
    seed: int,
) -> nn.Module:
    """Build a network with parameters drawn from the seed.

    Args:
        config: The `[model]` table of a run, `Config.network`. Where only the table is
            at hand, "auto" for `sign-invariant` counts as false: it follows the
            encoding.
        image_shape: C, H, W.
        num_classes: K.
        seed: The run's seed; the same seed gives the same parameters.

    Returns:
        A module from f32[B,C,H,W] to logits f32[B,K], on the CPU, in channels-last
        layout (half as fast again as channels-first on the CPUs we measured).

    Raises:
        ConfigError: the images are too small for the network, or it has no such
            normalisation or activation.
    """
    side = MIN_IMAGE_SIDE[config.name]
    if min(image_shape[1:]) < side:
        raise ConfigError(
            f"model.name = {config.name!r} needs images of at least {side}x{side} "
            f"pixels, got {image_shape[1]}x{image_shape[2]}: set data.image-size"
        )
    _check_variants(config)
    # torch initialises layers from its global generator: borrow it and give it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "model", config.name))
        model = MODELS[config.name](image_shape, num_classes, config)
    if config.sign_invariant is True:
        make_sign_invariant(model)
    return model.to(memory_format=torch.channels_last)


def _check_variants(config: ModelConfig) -> None:
    """Refuse a normalisation or activation that a network does not have.

    Raises:
        ConfigError: it has no normalisation layers, or one activation only.
    """
    if config.name in WITHOUT_NORMALIZATION and config.normalization != "none":
        raise ConfigError(
            f"model.name = {config.name!r} has no normalisation layers: set "
            f'model.normalization = "none", got {config.normalization!r}'
        )
    if config.name not in WITH_ACTIVATIONS and config.activation != "relu":
        raise ConfigError(
            f"model.name = {config.name!r} has no other activation than relu: set "
            f'model.activation = "relu", got {config.activation!r}'
        )
