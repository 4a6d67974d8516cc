"""ResNet-9: a residual network for images of 32 pixels that CPUs can train.

After the network that won DAWNBench's contest of training time on CIFAR-10 (Page, "How
to Train Your ResNet", 2018), there of width 64 and with max pooling at the end. The
mean suits mixed images better, of which each holds several objects: after 500 steps of
100 encodings (InstaHide cross, k = 4, width 24) the loss is 1.166, with max pooling
1.193; chance is 1.24.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.config import ModelConfig
from instahide_fl.models.layout import ChannelsLast
from instahide_fl.models.normalization import normalization_layer


class ConvBlock(nn.Module):
    """A 3x3 convolution, 2x2 max pooling if asked for, normalisation and ReLU.

    Pooling comes before normalisation, which then has a quarter of the values to pass
    through: on a CPU a step of width 32 takes a tenth less time.
    """

    def __init__(
        self, channels: int, width: int, normalization: str, *, pool: bool = False
    ) -> None:
        super().__init__()
        # A normalisation has a bias of its own.
        has_bias = normalization == "none"
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=has_bias)
        self.norm = normalization_layer(normalization)(width)
        self._pool = pool

    def forward(self, features: Tensor) -> Tensor:
        """Return f32[B,width,H,W], or half of H and W, for f32[B,channels,H,W]."""
        features = self.conv(features)
        if self._pool:
            features = F.max_pool2d(features, 2)
        return F.relu(self.norm(features))


class ResidualBlock(nn.Module):
    """Two convolution blocks, whose output is added to their input."""

    def __init__(self, width: int, normalization: str) -> None:
        super().__init__()
        self.first = ConvBlock(width, width, normalization)
        self.second = ConvBlock(width, width, normalization)

    def forward(self, features: Tensor) -> Tensor:
        """Return f32[B,width,H,W] for f32[B,width,H,W]."""
        residual: Tensor = self.second(self.first(features))
        return features + residual


class ResNet9(nn.Module):
    """Eight convolutions, two residual connections, and one linear layer.

    The first block has `width` channels; the three that pool have 2, 4 and 8 times as
    many.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
    ) -> None:
        super().__init__()
        self.layout = ChannelsLast()
        width, normalization = config.width, config.normalization
        self.blocks = nn.Sequential(
            ConvBlock(image_shape[0], width, normalization),
            ConvBlock(width, 2 * width, normalization, pool=True),
            ResidualBlock(2 * width, normalization),
            ConvBlock(2 * width, 4 * width, normalization, pool=True),
            ConvBlock(4 * width, 8 * width, normalization, pool=True),
            ResidualBlock(8 * width, normalization),
        )
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits.

        Args:
            images: Normalised images, f32[B,C,H,W].

        Returns:
            f32[B,K].
        """
        features = self.blocks(self.layout(images))
        # [B,8*width,H/8,W/8] -> [B,8*width]
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits
