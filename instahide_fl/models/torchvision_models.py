"""Torchvision's networks, with the stem that small images need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from instahide_fl.config import ModelConfig
from instahide_fl.models.normalization import normalization_layer, replace_batch_norm

# Below this side in pixels, a stem that shrinks images by four leaves too little.
SMALL_IMAGES = 64


def resnet18(
    image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
) -> nn.Module:
    """Return ResNet-18 (He et al., CVPR 2016), 11.2 million parameters.

    Args:
        image_shape: C, H, W. Below 64 pixels the stem is a 3x3 convolution without
            stride or pooling (section 4.2 of the paper).
        num_classes: K.
        config: The `[model]` table, whose `normalization` follows every convolution.
    """
    # Imported here: torchvision does not load beside every build of torch.
    from torchvision.models import (  # type: ignore[import-untyped]
        resnet18 as build,
    )

    return _resnet(build, image_shape, num_classes, config)


def resnet50(
    image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
) -> nn.Module:
    """Return ResNet-50, 23.5 million parameters; see `resnet18`."""
    from torchvision.models import resnet50 as build

    return _resnet(build, image_shape, num_classes, config)


def densenet121(
    image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
) -> nn.Module:
    """Return DenseNet-121 (Huang et al., CVPR 2017), 7.0 million parameters.

    Meant for CIFAR-100: InstaHide's authors used a NASNet of about that size, which
    neither torchvision nor timm has for small images.

    Args:
        image_shape: C, H, W; small images get the stem of `resnet18`.
        num_classes: K.
        config: The `[model]` table, whose `normalization` replaces BatchNorm.
    """
    from torchvision.models import densenet121 as build

    model: nn.Module = build(num_classes=num_classes)
    channels, height, _ = image_shape
    features: Any = model.features
    if height < SMALL_IMAGES:
        features.conv0 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        features.pool0 = nn.Identity()
    elif channels != 3:
        features.conv0 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    if config.normalization != "batch":
        replace_batch_norm(model, config.normalization)
    return model


def _resnet(
    build: Callable[..., nn.Module],
    image_shape: tuple[int, int, int],
    num_classes: int,
    config: ModelConfig,
) -> nn.Module:
    norm = normalization_layer(config.normalization)
    model = build(num_classes=num_classes, norm_layer=norm)
    channels, height, _ = image_shape
    if height < SMALL_IMAGES:
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return model
