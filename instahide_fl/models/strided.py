"""Small networks without pooling, on which attacks on gradients are measured."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instahide_fl.config import ModelConfig
from instahide_fl.models.activation import ACTIVATIONS
from instahide_fl.models.normalization import normalization_layer


class Mlp(nn.Module):
    """One hidden layer of 32 x `width` units on all pixels."""

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.hidden = nn.Linear(channels * height * width, 32 * config.width)
        self.head = nn.Linear(32 * config.width, num_classes)
        self._activate = ACTIVATIONS[config.activation]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits f32[B,K] of normalised images f32[B,C,H,W]."""
        pixels = images.flatten(1)  # [B,C,H,W] -> [B,C*H*W]
        logits: Tensor = self.head(self._activate(self.hidden(pixels)))
        return logits


class StridedCnn(nn.Module):
    """Three 3x3 convolutions of stride 2, each with activation, and a linear layer."""

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        normalise = normalization_layer(config.normalization)
        first, second, third = (config.width * factor for factor in (1, 2, 4))
        self.conv1 = nn.Conv2d(channels, first, 3, stride=2, padding=1)
        self.norm1 = normalise(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.norm2 = normalise(second)
        self.conv3 = nn.Conv2d(second, third, 3, stride=2, padding=1)
        self.norm3 = normalise(third)
        rows, columns = (_halved(side, 3) for side in (height, width))
        self.head = nn.Linear(third * rows * columns, num_classes)
        self._activate = ACTIVATIONS[config.activation]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits f32[B,K] of normalised images f32[B,C,H,W]."""
        features = self._activate(self.norm1(self.conv1(images)))
        features = self._activate(self.norm2(self.conv2(features)))
        features = self._activate(self.norm3(self.conv3(features)))
        logits: Tensor = self.head(features.flatten(1))  # [B,D,h,w] -> [B,D*h*w]
        return logits


class StridedLeNet(nn.Module):
    """Three 5x5 convolutions of 12 channels, strides 2, 2 and 1, and a linear layer.

    The network that Zhu et al. ("Deep Leakage from Gradients", NeurIPS 2019) attack,
    with their initialisation: all parameters uniform in [-0.5, 0.5].
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = nn.Conv2d(channels, 12, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(12, 12, 5, stride=2, padding=2)
        self.conv3 = nn.Conv2d(12, 12, 5, stride=1, padding=2)
        rows, columns = (_halved(side, 2) for side in (height, width))
        self.head = nn.Linear(12 * rows * columns, num_classes)
        self._activate = ACTIVATIONS[config.activation]
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.5, 0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits f32[B,K] of normalised images f32[B,C,H,W]."""
        features = self._activate(self.conv1(images))
        features = self._activate(self.conv2(features))
        features = self._activate(self.conv3(features))
        logits: Tensor = self.head(features.flatten(1))  # [B,12,h,w] -> [B,12*h*w]
        return logits


def _halved(side: int, times: int) -> int:
    """Return an image's side after some padded convolutions of stride 2, in pixels."""
    for _ in range(times):
        side = (side + 1) // 2
    return side
