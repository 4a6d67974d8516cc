"""Two networks that map encodings and public images to vectors that can be compared.

One network (tower) takes encodings, the other public images; where a mask hides signs,
both take absolute values. They are trained so that an encoding is nearer to the public
images in it than to all others of the batch (InfoNCE: van den Oord et al.,
arXiv:1807.03748), each weighted by its coefficient.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.attacks.base import ProgressCallback
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
INITIAL_SHARPNESS = 20.0  # inverse temperature of the softmax
MAX_SHARPNESS = 100.0
BLOCK = 512  # encodings embedded at a time


class Tower(nn.Module):
    """A network from images f32[n,C,H,W] to vectors f32[n,4*H*W] of length 1.

    It has no pooling, because an encoding shows its images pixel by pixel; the
    neighbours of a pixel tell what is unusual there.
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
        """Return vectors of length 1."""
        # The square of a mixture is nearly a sum over its images: what disturbs it are
        # products of two images, which average out.
        both = torch.cat([images, images.square()], dim=1)  # [n,2*C,H,W]
        maps = self.features(both)
        centred = maps - maps.mean(dim=(2, 3), keepdim=True)
        return F.normalize(centred.flatten(1))  # [n,4,H,W] -> [n,4*H*W]


class TwoTowers(nn.Module):
    """A tower for encodings and one for public images."""

    def __init__(self, channels: int, ignore_signs: bool) -> None:
        super().__init__()
        self.encodings = Tower(channels)
        self.public = Tower(channels)
        self.sharpness = nn.Parameter(torch.tensor(INITIAL_SHARPNESS).log())
        self.ignore_signs = ignore_signs

    def embed_encodings(self, images: Tensor) -> Tensor:
        """Return vectors f32[n,d] of encodings f32[n,C,H,W]."""
        vectors: Tensor = self.encodings(images.abs() if self.ignore_signs else images)
        return vectors

    def embed_public(self, images: Tensor) -> Tensor:
        """Return vectors f32[n,d] of normalised public images f32[n,C,H,W]."""
        vectors: Tensor = self.public(images.abs() if self.ignore_signs else images)
        return vectors

    def loss(self, pool: MixingPool) -> Loss:
        """Return the contrastive loss on mixtures with images of a pool."""

        def contrastive(mixed: Tensor, key: EncodingKey) -> Tensor:
            rows, column = torch.unique(key.public_index, return_inverse=True)
            public = self.embed_public(pool.statistics.normalise(pool.images[rows]))
            sharpness = self.sharpness.exp().clamp_max(MAX_SHARPNESS)
            logits = sharpness * self.embed_encodings(mixed) @ public.T  # [B,rows]
            weights = key.coefficients[:, key.private_index.shape[1] :]
            weights = weights / weights.sum(dim=1, keepdim=True)
            targets = torch.zeros_like(logits).scatter_(1, column, weights)
            return F.cross_entropy(logits, targets)

        return contrastive


def train_towers(
    mixtures: OwnMixtures,
    pool: MixingPool,
    ignore_signs: bool,
    encodings: Tensor,
    training: Training,
    rng: np.random.Generator,
    progress: ProgressCallback,
) -> Comparison:
    """Train two towers on the attacker's own mixtures, and embed the encodings.

    Args:
        mixtures: The attacker's own mixtures, with images of the pool.
        pool: The public images.
        ignore_signs: Whether a mask hides the signs.
        encodings: The victims' encodings, f32[E,C,H,W].
        training: The number and the size of the batches.
        rng: The generator of initial weights and mixtures.
        progress: The callback for progress, in steps.

    Returns:
        The comparison of these encodings with public images.
    """
    channels = pool.image_shape[0]
    towers = seeded_network(lambda: TwoTowers(channels, ignore_signs), rng)
    train_on_mixtures(
        network=towers,
        loss=towers.loss(pool),
        mixtures=mixtures,
        training=training,
        rng=rng,
        progress=progress,
    )

    def embed(images: Tensor) -> Tensor:
        with torch.no_grad():
            return towers.embed_public(images)

    with torch.no_grad():
        blocks = [
            towers.embed_encodings(block) for block in torch.split(encodings, BLOCK)
        ]
    return Comparison(torch.cat(blocks), embed)
