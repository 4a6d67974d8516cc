"""Comparing images by what is unusual in them.

Neighbouring pixels of photographs are alike, so a plain correlation mostly compares a
few large patches of light and dark, which all photographs share. Whitening (the matched
filter of signal detection, the Mahalanobis distance of statistics) takes out what the
covariance of the images predicts, and every detail then counts as much.

Under a sign mask squares are compared: the square of a mixture is the sum of the
squares of its images, weighted, and of products that are as often positive as
negative.
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
BLOCK = 512  # of them at a time
SHRINKAGE = 0.01  # of the mean variance, added to every variance
OWN_SHRINKAGE = 0.1  # the same for encodings: they are fewer, and share what they show
MAX_FEATURES = 3072  # larger images are averaged down to no more


@dataclass(frozen=True)
class Whitening:
    """Mean and covariance of the features of images.

    Attributes:
        ignore_signs: features are squares of pixels, else pixels.
        mean: f32[d].
        whiten: f32[d,d], the inverse of the covariance's lower Cholesky factor.
    """

    ignore_signs: bool
    mean: Tensor
    whiten: Tensor

    @classmethod
    def of_pool(
        cls, pool: MixingPool, ignore_signs: bool, rng: np.random.Generator
    ) -> Whitening:
        """Measure them on a sample of a pool.

        Args:
            pool: public images.
            ignore_signs: compare squares.
            rng: draws the sample.
        """
        rows = rng.permutation(len(pool))[:SAMPLE]
        rows.sort()  # pools lie on a disk
        blocks = (
            features_of(pool.statistics.normalise(pool.images[some]), ignore_signs)
            for some in torch.split(torch.from_numpy(rows), BLOCK)
        )
        return cls._of(blocks, ignore_signs, SHRINKAGE)

    @classmethod
    def of_encodings(cls, encodings: Tensor, ignore_signs: bool) -> Whitening:
        """Measure them on encodings, where there are no public images.

        Args:
            encodings: f32[E,C,H,W], normalised.
            ignore_signs: compare squares.
        """
        blocks = (
            features_of(some, ignore_signs) for some in torch.split(encodings, BLOCK)
        )
        return cls._of(blocks, ignore_signs, OWN_SHRINKAGE)

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
        """Return the same of encodings f32[E,C,H,W], about their own mean."""
        features = features_of(encodings, self.ignore_signs)
        return F.normalize(self.whitened(features - features.mean(dim=0)))

    def whitened(self, features: Tensor, again: bool = False) -> Tensor:
        """Return vectors f32[n,d] whose inner products are those of whitened ones.

        Args:
            features: f32[n,d], about their mean.
            again: multiply whitened vectors by the transposed matrix. Their products
                with plain features are then those of two whitened ones.
        """
        return features @ (self.whiten if again else self.whiten.T)


def features_of(images: Tensor, ignore_signs: bool) -> Tensor:
    """Return what is compared, of images averaged down if large.

    Args:
        images: f32[n,C,H,W], normalised.
        ignore_signs: squares of pixels, else pixels.

    Returns:
        f32[n,d], with d at most `MAX_FEATURES` unless channels are many.
    """
    values = images.square() if ignore_signs else images
    channels, height, width = images.shape[1:]
    while channels * height * width > MAX_FEATURES and min(height, width) > 1:
        height, width = height // 2, width // 2
    if (height, width) != tuple(images.shape[2:]):
        values = F.adaptive_avg_pool2d(values, (height, width))
    return values.flatten(1)


def _moments(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean f64[d] and covariance f64[d,d] of the rows of all blocks."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for block in blocks:
        # The products are the work: float32 is exact enough for a block of them.
        count += len(block)
        total = total + block.double().sum(dim=0)
        products = products + (block.T @ block).double()
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)
