"""The pre-activation ResNet-18 that InstaHide's authors trained on CIFAR-10.

It differs from the one in libraries (He et al., "Identity Mappings in Deep Residual
Networks", ECCV 2016): the stem is normalised, and nothing comes between the last block
and the pooling.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.config import ModelConfig
from instahide_fl.models.layout import ChannelsLast
from instahide_fl.models.normalization import normalization_layer

WIDTHS = (64, 128, 256, 512)
BLOCKS_PER_WIDTH = 2


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after normalisation and ReLU, and a shortcut."""

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        normalise: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.norm1 = normalise(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm2 = normalise(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return f32[B,width,H/stride,W/stride] for f32[B,channels,H,W]."""
        active = F.relu(self.norm1(features))
        identity = features if self.shortcut is None else self.shortcut(active)
        residual: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return residual + identity


class PreActResNet18(nn.Module):
    """A normalised 3x3 stem, eight pre-activation blocks, pooling, a linear layer."""

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
    ) -> None:
        super().__init__()
        self.layout = ChannelsLast()
        normalise = normalization_layer(config.normalization)
        self.stem = nn.Conv2d(image_shape[0], WIDTHS[0], 3, padding=1, bias=False)
        self.stem_norm = normalise(WIDTHS[0])
        blocks, channels = [], WIDTHS[0]
        for width in WIDTHS:
            for number in range(BLOCKS_PER_WIDTH):
                stride = 2 if number == 0 and width != WIDTHS[0] else 1
                blocks.append(PreActBlock(channels, width, stride, normalise))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits.

        Args:
            images: Normalised images, f32[B,C,H,W].

        Returns:
            f32[B,K].
        """
        images = self.layout(images)
        features = self.blocks(F.relu(self.stem_norm(self.stem(images))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))  # [B,512,H,W] -> [B,512]
        return logits
