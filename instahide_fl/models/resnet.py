"""Residual networks, from torchvision."""

from __future__ import annotations

from torch import nn

from instahide_fl.config import ModelConfig
from instahide_fl.models.cnn import groups_of


def resnet18(
    image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
) -> nn.Module:
    """Return torchvision's ResNet-18 with the stem that small images need.

    He et al., CVPR 2016, section 4.2: a 3x3 convolution without stride or pooling comes
    first. 11.2 million parameters.

    Args:
        image_shape: C, H, W.
        num_classes: K.
        config: its `normalization` is put after every convolution.
    """
    # Imported here: torchvision does not load beside every build of torch.
    from torchvision.models import (  # type: ignore[import-untyped]
        resnet18 as build,
    )

    grouped = config.normalization == "group"
    model: nn.Module = build(
        num_classes=num_classes,
        norm_layer=_group_norm if grouped else _no_norm,
    )
    model.conv1 = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(groups_of(channels), channels)


def _no_norm(channels: int) -> nn.Module:
    return nn.Identity()
