"""Find the public images in an encoding, given a guess of its private part.

The pool is public. Where the private part is known roughly, it tells the signs of the
pixels in which it is large; what is left of these is a sum of images of the pool. They
are found one by one, as in orthogonal matching pursuit, each making signs surer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import AttackError

DIRECTIONS = 512  # principal ones of the pool, in which images are compared
WHITE = 0.3  # variance of what hides an image, beside other images
LEAST_VARIANCE = 1e-3
POLISH = 3  # times coefficients and signs are fitted once all images are chosen
REST_SPREAD = 1.4  # mean square over squared mean of coefficients, roughly
PENALTY = 0.02  # of coefficients, for each pixel
LARGEST_POOL = 100_000


@dataclass(frozen=True)
class FoundPublic:
    """Public parts of H encodings.

    Attributes:
        index: i64[H,m] into the pool, in the order in which they were found.
        coefficients: f32[H,m]; 0 where an image did not fit.
        total: f32[H,D], their weighted sum.
    """

    index: Tensor
    coefficients: Tensor
    total: Tensor


class PublicSearch:
    """A pool, prepared for searching.

    Args:
        pool: public images.
        count: of them in each encoding, m.
        most: largest coefficient.
        rng: of the randomised principal directions.

    Raises:
        AttackError: the pool is too large.
    """

    def __init__(
        self, pool: MixingPool, count: int, most: float, rng: np.random.Generator
    ) -> None:
        from sklearn.utils.extmath import randomized_svd

        if len(pool) > LARGEST_POOL:
            raise AttackError(
                f"searching {len(pool)} public images takes too much memory (at most "
                f"{LARGEST_POOL}): set carlini.search-pool = false"
            )
        self.count, self.most = count, most
        self.images = pool.statistics.normalise(pool.images).flatten(1)
        rank = min(DIRECTIONS, *self.images.shape)
        _, sizes, rows = randomized_svd(
            self.images.numpy(),
            rank,
            n_iter=2,
            random_state=int(rng.integers(2**31)),
        )
        self._directions = torch.from_numpy(np.ascontiguousarray(rows.T))
        variance = torch.from_numpy(sizes).square() / len(self.images)
        projected = self.images @ self._directions
        keys = projected / (variance + WHITE)
        length = (keys * projected).sum(1).sqrt().clamp_min(1e-6)
        self._keys = (keys / length[:, None]).T.contiguous()

    def find(
        self, magnitudes: Tensor, private: Tensor, rest: Tensor, error: Tensor
    ) -> FoundPublic:
        """Find the public images.

        Args:
            magnitudes: f32[H,D], absolute values of encodings.
            private: f32[H,D], guesses of their private parts.
            rest: f32[H], the sum of the public coefficients.
            error: f32[H], variance of the guesses' error.
        """
        index = torch.empty(len(magnitudes), 0, dtype=torch.int64)
        coefficients = torch.empty(len(magnitudes), 0)
        total = torch.zeros_like(private)
        for _ in range(self.count + POLISH):
            missing = self.count - index.shape[1]
            left = (rest - coefficients.sum(1)).clamp_min(0)
            unknown = left.square() * REST_SPREAD / missing if missing else 0.0
            variance = (error + unknown + LEAST_VARIANCE)[:, None]
            signs = torch.tanh(magnitudes * (private + total) / variance)
            public = signs * magnitudes - private
            if missing:
                index = torch.cat([index, self._best(public - total, index)], 1)
            chosen = self.images[index]
            coefficients = self._fit(chosen, public, variance)
            total = (coefficients[:, None] @ chosen)[:, 0]
        return FoundPublic(index, coefficients, total)

    def _best(self, rest: Tensor, taken: Tensor) -> Tensor:
        score = rest @ self._directions @ self._keys
        return score.scatter_(1, taken, float("-inf")).argmax(1, keepdim=True)

    def _fit(self, chosen: Tensor, public: Tensor, variance: Tensor) -> Tensor:
        normal = chosen @ chosen.transpose(1, 2)
        penalty = PENALTY * public.shape[1] * variance[:, :, None]
        normal = normal + torch.eye(chosen.shape[1]) * penalty
        wanted = (chosen @ public[:, :, None])[:, :, 0]
        solved: Tensor = torch.linalg.solve(normal, wanted)
        return solved.clamp(0.0, self.most)
