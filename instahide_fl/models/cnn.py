"""Small convolutional networks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.config import ModelConfig
from instahide_fl.models.activation import ACTIVATIONS
from instahide_fl.models.layout import ChannelsLast
from instahide_fl.models.normalization import normalization_layer


class SmallCnn(nn.Module):
    """Two 3x3 convolutions, each with ReLU and 2x2 max pooling, and two linear layers.

    With `width` 32 it has the channels, 32 and 64, of the CNN that federated-learning
    benchmarks train on CIFAR-10.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
    ) -> None:
        super().__init__()
        self.layout = ChannelsLast()
        channels, height, width = image_shape
        first, second = config.width, 2 * config.width
        normalise = normalization_layer(config.normalization)
        self.conv1 = nn.Conv2d(channels, first, 3, padding=1)
        self.norm1 = normalise(first)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.norm2 = normalise(second)
        self.hidden = nn.Linear(second * (height // 4) * (width // 4), 128)
        self.head = nn.Linear(128, num_classes)
        self._activate = ACTIVATIONS[config.activation]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits.

        Args:
            images: Normalised images, f32[B,C,H,W].

        Returns:
            f32[B,K].
        """
        images = self.layout(images)
        features = F.max_pool2d(self._activate(self.norm1(self.conv1(images))), 2)
        features = F.max_pool2d(self._activate(self.norm2(self.conv2(features))), 2)
        flat = features.flatten(1)  # [B,D,H/4,W/4] -> [B,D*(H/4)*(W/4)]
        logits: Tensor = self.head(self._activate(self.hidden(flat)))
        return logits


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max pooling, as it is used today."""

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, config: ModelConfig
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        rows, columns = ((side // 2 - 4) // 2 for side in (height, width))
        self.hidden1 = nn.Linear(16 * rows * columns, 120)
        self.hidden2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, num_classes)
        self._activate = ACTIVATIONS[config.activation]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits.

        Args:
            images: Normalised images, f32[B,C,H,W].

        Returns:
            f32[B,K].
        """
        features = F.max_pool2d(self._activate(self.conv1(images)), 2)
        features = F.max_pool2d(self._activate(self.conv2(features)), 2)
        flat = features.flatten(1)  # [B,16,h,w] -> [B,16*h*w]
        hidden = self._activate(self.hidden2(self._activate(self.hidden1(flat))))
        logits: Tensor = self.head(hidden)
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
        self.layout = ChannelsLast()
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
            images: Normalised images, f32[B,C,H,W].

        Returns:
            f32[B,K].
        """
        images = self.layout(images)
        features = F.relu(self.conv2(F.relu(self.conv1(images))))
        features = self.dropout1(F.max_pool2d(features, 2))
        flat = features.flatten(1)  # [B,64,h,w] -> [B,64*h*w]
        hidden = self.dropout2(F.relu(self.hidden(flat)))
        logits: Tensor = self.head(hidden)
        return logits
