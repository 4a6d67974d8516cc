"""The public image that best explains what remains of an encoding.

A matched filter: correlation after both sides were whitened with the covariance of
public images (`attacks.whitening`). It finds the likeliest image where the remainder is
one public image times a coefficient, plus others like it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.whitening import Whitening, features_of
from instahide_fl.data.pool import MixingPool

VALUES_PER_CHUNK = 2**23  # pixels of the pool in memory: 32 MB


@dataclass(frozen=True)
class Match:
    """The best public image for each row.

    Attributes:
        index: i64[m], the row of the image in the pool.
        coefficient: f32[m], the image's coefficient by generalised least squares.
        lead: f32[m], by how many standard deviations of the whole pool's scores the
            image's score exceeds 0. Chance alone reaches about 4 among 20,000 images.
    """

    index: Tensor
    coefficient: Tensor
    lead: Tensor

    def or_better(self, other: Match) -> Match:
        """Return for each row the match that leads more."""
        better = other.lead > self.lead
        return Match(
            torch.where(better, other.index, self.index),
            torch.where(better, other.coefficient, self.coefficient),
            torch.where(better, other.lead, self.lead),
        )


@dataclass(frozen=True)
class MatchedFilter:
    """A pool of N images, ready to be searched.

    Attributes:
        pool: The public images.
        whitening: The whitening of their pixels, or of the squares of their pixels.
        lengths: f32[N], the lengths of the whitened images.
    """

    pool: MixingPool
    whitening: Whitening
    lengths: Tensor

    @classmethod
    def of_pool(
        cls, pool: MixingPool, ignore_signs: bool, rng: np.random.Generator
    ) -> MatchedFilter:
        """Prepare a search.

        Args:
            pool: The public images.
            ignore_signs: Whether squares of pixels are compared, as for the first
                image of an encoding; pixels otherwise.
            rng: The generator of the sample that whitening is measured on.
        """
        whitening = Whitening.of_pool(pool, ignore_signs, rng)
        lengths = [
            whitening.whitened(_pool_features(pool, whitening, rows)).norm(dim=1)
            for rows in _chunks(pool)
        ]
        return cls(pool, whitening, torch.cat(lengths).clamp_min(1e-6))

    def best(self, features: Tensor, taken: Tensor) -> Match:
        """Find the best public image for each row.

        Args:
            features: f32[m,d], the remainder: pixels, or squares about their mean.
            taken: i64[m,j], images of the pool that the row has already.
        """
        # <W f, W x> = <W'W f, x>: whitening one side twice leaves the pool as it is.
        queries = self.whitening.whitened(self.whitening.whitened(features), again=True)
        best = torch.full((len(features),), float("-inf"))
        index = torch.zeros(len(features), dtype=torch.int64)
        total, squares = torch.zeros(len(features)), torch.zeros(len(features))
        for rows in _chunks(self.pool):
            images = _pool_features(self.pool, self.whitening, rows)
            scores = (queries @ images.T) / self.lengths[rows]
            total += scores.sum(1)
            squares += scores.square().sum(1)
            _exclude(scores, taken - rows.start)
            highest = scores.max(1)
            better = highest.values > best
            best = torch.where(better, highest.values, best)
            index = torch.where(better, highest.indices + rows.start, index)
        count = len(self.pool)
        spread = (squares / count - (total / count).square()).clamp_min(1e-12).sqrt()
        gain = best / self.lengths[index]
        if self.whitening.ignore_signs:
            # The square of an image is scaled by the square of its coefficient.
            gain = gain.clamp_min(0).sqrt()
        return Match(index, gain, best / spread)


def _chunks(pool: MixingPool) -> list[slice]:
    size = max(1, VALUES_PER_CHUNK // pool.images[0].numel())
    return [slice(start, start + size) for start in range(0, len(pool), size)]


def _pool_features(pool: MixingPool, whitening: Whitening, rows: slice) -> Tensor:
    """Return features of some public images about their mean, f32[n,d]."""
    images = pool.statistics.normalise(pool.images[rows])
    return features_of(images, whitening.ignore_signs) - whitening.mean


def _exclude(scores: Tensor, images: Tensor) -> None:
    """Rule out images, i64[m,j], as far as they are in this chunk of the pool."""
    in_chunk = (images >= 0) & (images < scores.shape[1])
    rows, columns = in_chunk.nonzero(as_tuple=True)
    scores[rows, images[rows, columns]] = float("-inf")
