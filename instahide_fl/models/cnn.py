"""Small convolutional networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.config import ModelConfig


class SmallCnn(nn.Module):
    """Two 3x3 convolutions, each with ReLU and 2x2 max pooling, and two linear layers.

    With `width` 32 it has the shape of the CNN that federated-learning benchmarks train
    on CIFAR-10 (32 and 64 channels).
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        first, second = config.width, 2 * config.width
        grouped = config.normalization == "group"
        self.conv1 = nn.Conv2d(channels, first, 3, padding=1)
        self.norm1 = nn.GroupNorm(_groups(first), first) if grouped else nn.Identity()
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.norm2 = nn.GroupNorm(_groups(second), second) if grouped else nn.Identity()
        self.hidden = nn.Linear(second * (height // 4) * (width // 4), 128)
        self.head = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits.

        Args:
            images: f32[B,C,H,W], normalised.

        Returns:
            f32[B,K].
        """
        images = images.contiguous(memory_format=torch.channels_last)
        features = F.max_pool2d(F.relu(self.norm1(self.conv1(images))), 2)
        features = F.max_pool2d(F.relu(self.norm2(self.conv2(features))), 2)
        logits: Tensor = self.head(F.relu(self.hidden(features.flatten(1))))
        return logits


def _groups(channels: int) -> int:
    """Return the largest number of groups up to 8 that divides the channels."""
    return next(groups for groups in range(8, 0, -1) if channels % groups == 0)
