"""A network that guesses the signs of a mixture from its absolute values.

A small U-Net (Ronneberger et al., MICCAI 2015) at half the resolution, so that it
trains on a CPU. It gives the log-odds of a positive sign for every pixel.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.attacks.base import Advance
from instahide_fl.attacks.pool_search.network_training import (
    Training,
    seeded_network,
    train_on_mixtures,
)
from instahide_fl.attacks.pool_search.training_mixtures import OwnMixtures
from instahide_fl.types import EncodingKey

WIDTH = 32
GROUPS = 8


class SignNetwork(nn.Module):
    """From absolute values f32[B,C,H,W] to log-odds of signs, of the same shape."""

    def __init__(self, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        self.fine = nn.Sequential(_block(4 * channels, width), _block(width, width))
        self.middle = nn.Sequential(
            _block(width, 2 * width, stride=2), _block(2 * width, 2 * width)
        )
        self.coarse = nn.Sequential(
            _block(2 * width, 4 * width, stride=2), _block(4 * width, 4 * width)
        )
        self.to_middle = _block(6 * width, 2 * width)
        self.to_fine = nn.Sequential(_block(3 * width, width), _block(width, width))
        self.head = nn.Conv2d(width, 4 * channels, 3, padding=1)

    def forward(self, magnitudes: Tensor) -> Tensor:
        """Return log-odds of a positive sign."""
        height, width = magnitudes.shape[-2:]
        even = F.pad(magnitudes, (0, width % 2, 0, height % 2), mode="replicate")
        fine = self.fine(F.pixel_unshuffle(even, 2))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        middle = self.to_middle(torch.cat([_enlarged(coarse, middle), middle], 1))
        fine = self.to_fine(torch.cat([_enlarged(middle, fine), fine], 1))
        odds = F.pixel_shuffle(self.head(fine), 2)
        return odds[..., :height, :width]


def sign_loss(odds: Tensor, mixed: Tensor) -> Tensor:
    """Return the loss of guessed signs, in the better of both signs of each image.

    A mixture and its negative have the same absolute values. Signs of large pixels
    matter more than those of pixels near zero.

    Args:
        odds: f32[B,C,H,W], of a positive sign.
        mixed: f32[B,C,H,W], with its signs.
    """
    weight = mixed.abs()
    weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
    right = odds * mixed.sign()
    both = [(weight * F.softplus(sign * right)).mean((1, 2, 3)) for sign in (1, -1)]
    return torch.minimum(*both).mean()


def train_sign_network(
    channels: int,
    mixtures: OwnMixtures,
    training: Training,
    rng: np.random.Generator,
    advance: Advance,
) -> tuple[SignNetwork, float]:
    """Train a network on own mixtures, whose signs are known.

    Args:
        channels: C of the images.
        mixtures: where batches come from.
        training: how long.
        rng: draws initial weights and mixtures.
        advance: told how many steps are done.

    Returns:
        The network and its last loss, log 2 for even odds.
    """
    network = seeded_network(lambda: SignNetwork(channels), rng)

    def loss(mixed: Tensor, key: EncodingKey) -> Tensor:
        return sign_loss(network(mixed.abs()), mixed)

    last = train_on_mixtures(network, loss, mixtures, training, rng, advance)
    return network, last


def demask(network: nn.Module, encodings: Tensor, batch: int = 256) -> Tensor:
    """Return the expected mixtures f32[E,C,H,W] under the guessed signs.

    Args:
        network: trained `SignNetwork`.
        encodings: f32[E,C,H,W], whatever their signs.
        batch: encodings at a time.
    """
    parts = []
    with torch.no_grad():
        for some in torch.split(encodings.abs(), batch):
            # Expected value of a sign whose log-odds are known.
            parts.append(some * torch.tanh(network(some) / 2))
    return torch.cat(parts)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.GroupNorm(GROUPS, outputs),
        nn.SiLU(),
    )


def _enlarged(features: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(
        features, size=like.shape[-2:], mode="bilinear", align_corners=False
    )
