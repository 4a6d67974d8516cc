"""Two networks that map encodings and public images to vectors that can be compared.

One tower takes encodings, one public images, without signs where a mask hides them.
They are trained so that an encoding is nearer to the public images in it than to all
others of the batch (InfoNCE: van den Oord et al., arXiv:1807.03748), each weighted by
its coefficient.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.attacks.base import Advance
from instahide_fl.attacks.pool_search.network_training import (
    Loss,
    Training,
    seeded_network,
    train_on_mixtures,
)
from instahide_fl.attacks.pool_search.pool_ranking import Comparison
from instahide_fl.attacks.pool_search.training_mixtures import OwnMixtures
from instahide_fl.data.pool import MixingPool
from instahide_fl.types import EncodingKey

WIDTH = 16
OUTPUTS = 4  # channels that are compared, at every pixel
SHARPNESS = 20.0  # inverse temperature, to begin with
SHARPEST = 100.0
BLOCK = 512  # encodings embedded at a time


class Tower(nn.Module):
    """From images f32[n,C,H,W] to vectors f32[n,4*H*W] of length 1.

    Nothing is pooled: an encoding shows its images pixel by pixel, and what is unusual
    at a pixel, its neighbours tell.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2 * channels, WIDTH, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, OUTPUTS, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors."""
        # Squares add up over the images of a mixture, but for products of two.
        both = torch.cat([images, images.square()], dim=1)
        found = self.features(both)
        return F.normalize((found - found.mean(dim=(2, 3), keepdim=True)).flatten(1))


class TwoTowers(nn.Module):
    """A tower for encodings and one for public images."""

    def __init__(self, channels: int, ignore_signs: bool) -> None:
        super().__init__()
        self.encodings = Tower(channels)
        self.public = Tower(channels)
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS).log())
        self.ignore_signs = ignore_signs

    def embed_encodings(self, images: Tensor) -> Tensor:
        """Return vectors f32[n,d] of encodings f32[n,C,H,W]."""
        found: Tensor = self.encodings(images.abs() if self.ignore_signs else images)
        return found

    def embed_public(self, images: Tensor) -> Tensor:
        """Return vectors f32[n,d] of normalised public images f32[n,C,H,W]."""
        found: Tensor = self.public(images.abs() if self.ignore_signs else images)
        return found

    def loss(self, pool: MixingPool) -> Loss:
        """Return the contrastive loss on mixtures with images of a pool."""

        def contrastive(mixed: Tensor, key: EncodingKey) -> Tensor:
            rows, place = torch.unique(key.public_index, return_inverse=True)
            public = self.embed_public(pool.statistics.normalise(pool.images[rows]))
            sharpness = self.sharpness.exp().clamp_max(SHARPEST)
            logits = sharpness * self.embed_encodings(mixed) @ public.T
            weights = key.coefficients[:, key.private_index.shape[1] :]
            weights = weights / weights.sum(dim=1, keepdim=True)
            wanted = torch.zeros_like(logits).scatter_(1, place, weights)
            return F.cross_entropy(logits, wanted)

        return contrastive


def train_towers(
    mixtures: OwnMixtures,
    pool: MixingPool,
    ignore_signs: bool,
    encodings: Tensor,
    training: Training,
    rng: np.random.Generator,
    advance: Advance,
) -> Comparison:
    """Train two towers on own mixtures, and compare encodings by them.

    Args:
        mixtures: own ones, with images of the pool.
        pool: public images.
        ignore_signs: whether signs are hidden.
        encodings: f32[E,C,H,W], of the victims.
        training: how long.
        rng: draws initial weights and mixtures.
        advance: told how many steps are done.
    """
    channels = pool.image_shape[0]
    towers = seeded_network(lambda: TwoTowers(channels, ignore_signs), rng)
    train_on_mixtures(towers, towers.loss(pool), mixtures, training, rng, advance)

    def embed(images: Tensor) -> Tensor:
        with torch.no_grad():
            return towers.embed_public(images)

    with torch.no_grad():
        blocks = [
            towers.embed_encodings(some) for some in torch.split(encodings, BLOCK)
        ]
    return Comparison(torch.cat(blocks), embed)
