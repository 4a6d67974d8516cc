"""Comparing images by what is unusual in them.

Neighbouring pixels of photographs are alike, so a plain correlation mostly compares a
few large patches of light and dark, which all photographs share. Whitening (the matched
filter of signal detection, the Mahalanobis distance of statistics) takes out what the
covariance of the images predicts. Every detail then counts as much as any other.

Under a sign mask squares are compared: the square of a mixture is the weighted sum of
the squares of its images, and of products that are as often positive as negative.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instahide_fl.data.pool import MixingPool

SAMPLE = 8192  # public images that the covariance is measured on
BLOCK = 512  # images whose products are computed at a time
POOL_SHRINKAGE = 0.01  # share of the mean variance that is added to every variance
# Encodings need more: they are fewer, and their covariance holds what they share.
ENCODINGS_SHRINKAGE = 0.1
MAX_FEATURES = 3072  # pixels and channels; larger images are averaged down


@dataclass(frozen=True)
class Whitening:
    """Mean and covariance of the features of images.

    Attributes:
        ignore_signs: Whether features are squares of pixels; pixels otherwise.
        mean: f32[d], the mean of the features.
        whiten: f32[d,d], the inverse of the covariance's lower Cholesky factor.
    """

    ignore_signs: bool
    mean: Tensor
    whiten: Tensor

    @classmethod
    def of_pool(
        cls, pool: MixingPool, ignore_signs: bool, rng: np.random.Generator
    ) -> Whitening:
        """Measure mean and covariance on a sample of a pool.

        Args:
            pool: The public images.
            ignore_signs: Whether to compare squares of pixels.
            rng: The generator of the sample.
        """
        rows = rng.permutation(len(pool))[:SAMPLE]
        rows.sort()  # pools lie on a disk, which is read faster in order
        blocks = (
            features_of(pool.statistics.normalise(pool.images[block]), ignore_signs)
            for block in torch.split(torch.from_numpy(rows), BLOCK)
        )
        return cls._of(blocks, ignore_signs, POOL_SHRINKAGE)

    @classmethod
    def of_images(cls, blocks: Iterable[Tensor], ignore_signs: bool) -> Whitening:
        """Measure mean and covariance on images like those that are compared.

        Args:
            blocks: Images, f32[n,C,H,W] each, normalised.
            ignore_signs: Whether to compare squares of pixels.
        """
        features = (features_of(block, ignore_signs) for block in blocks)
        return cls._of(features, ignore_signs, POOL_SHRINKAGE)

    @classmethod
    def of_encodings(cls, encodings: Tensor, ignore_signs: bool) -> Whitening:
        """Measure mean and covariance on encodings, where there are no public images.

        Args:
            encodings: f32[E,C,H,W], normalised.
            ignore_signs: Whether to compare squares of pixels.
        """
        blocks = (
            features_of(block, ignore_signs) for block in torch.split(encodings, BLOCK)
        )
        return cls._of(blocks, ignore_signs, ENCODINGS_SHRINKAGE)

    @classmethod
    def _of(
        cls, blocks: Iterable[Tensor], ignore_signs: bool, shrinkage: float
    ) -> Whitening:
        mean, covariance = _moments(blocks)
        variance = covariance.diagonal().mean().clamp_min(1e-12)
        covariance.diagonal().add_(shrinkage * variance)
        factor = torch.linalg.cholesky(covariance)
        inverse = torch.linalg.solve_triangular(
            factor, torch.eye(len(factor), dtype=factor.dtype), upper=False
        )
        return cls(ignore_signs, mean.float(), inverse.float())

    def embed(self, images: Tensor) -> Tensor:
        """Return whitened vectors f32[n,d] of length 1.

        Args:
            images: f32[n,C,H,W], normalised public images.
        """
        return F.normalize(
            self.whitened(features_of(images, self.ignore_signs) - self.mean)
        )

    def embed_encodings(self, encodings: Tensor) -> Tensor:
        """Return whitened vectors f32[E,d] of length 1, about the encodings' own mean.

        Args:
            encodings: f32[E,C,H,W], normalised.
        """
        features = features_of(encodings, self.ignore_signs)
        return F.normalize(self.whitened(features - features.mean(dim=0)))

    def whitened(self, features: Tensor, again: bool = False) -> Tensor:
        """Return whitened features, f32[n,d].

        Args:
            features: f32[n,d], about their mean.
            again: Whether the features are whitened already. They are then multiplied
                by the transposed matrix, so that their scalar products with plain
                features are those of two whitened vectors.
        """
        return features @ (self.whiten if again else self.whiten.T)


def features_of(images: Tensor, ignore_signs: bool) -> Tensor:
    """Return the features that are compared; large images are averaged down.

    Args:
        images: f32[n,C,H,W], normalised.
        ignore_signs: Whether to return squares of pixels; pixels otherwise.

    Returns:
        f32[n,d], with d at most `MAX_FEATURES` unless channels are many.
    """
    values = images.square() if ignore_signs else images
    channels, height, width = images.shape[1:]
    while channels * height * width > MAX_FEATURES and min(height, width) > 1:
        height, width = height // 2, width // 2
    if (height, width) != tuple(images.shape[2:]):
        values = F.adaptive_avg_pool2d(values, (height, width))
    return values.flatten(1)  # [n,C,h,w] -> [n,d]


def _moments(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean f64[d] and covariance f64[d,d] of the rows of all blocks."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for block in blocks:
        # The products are most of the work: float32 is exact enough for one block,
        # and blocks are summed in float64.
        count += len(block)
        total = total + block.double().sum(dim=0)
        products = products + (block.T @ block).double()
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)
