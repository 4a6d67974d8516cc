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
        self.norm1 = nn.GroupNorm(groups_of(first), first) if grouped else nn.Identity()
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.norm2 = (
            nn.GroupNorm(groups_of(second), second) if grouped else nn.Identity()
        )
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


class DropoutCnn(nn.Module):
    """Two 3x3 convolutions, one pooling, dropout, and two linear layers.

    The network of federated-learning benchmarks (Reddi et al., "Adaptive Federated
    Optimization", ICLR 2021, table 4, there on EMNIST); 1,626,442 parameters for
    3x32x32 images and 10 classes.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = nn.Conv2d(channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.hidden = nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128)
        self.dropout2 = nn.Dropout(0.5)
        self.head = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits.

        Args:
            images: f32[B,C,H,W], normalised.

        Returns:
            f32[B,K].
        """
        images = images.contiguous(memory_format=torch.channels_last)
        features = F.relu(self.conv2(F.relu(self.conv1(images))))
        features = self.dropout1(F.max_pool2d(features, 2))
        hidden = self.dropout2(F.relu(self.hidden(features.flatten(1))))
        logits: Tensor = self.head(hidden)
        return logits


def groups_of(channels: int) -> int:
    """Return the largest number of groups up to 8 that divides the channels."""
    return next(groups for groups in range(8, 0, -1) if channels % groups == 0)
