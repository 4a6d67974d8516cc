"""The public part of encodings, image by image.

Source: our own. The squares of a mixture contain the square of each of its images, so
squares find the largest public image, whatever the signs (`pool_search`). A known image
tells the sign of the pixels where it dominates; with these signs what is left is linear
in the other images, and the next one is found by it: matching pursuit (Mallat and
Zhang, 1993) behind an unknown sign mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.carlini.matched_filter import Match, MatchedFilter
from instahide_fl.attacks.whitening import features_of
from instahide_fl.config import EncoderConfig
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.mixing import draw_coefficients

SURE = 4.5  # standard deviations; the images that are believed lead by more
BLIND = 3  # public images, at most, that are sought before private ones are known
FIT_ROUNDS = 3
RIDGE = 1e-3  # of the equations of coefficients, relative
MIN_COEFFICIENT = 0.03  # coefficient
EXACT = 2e-3  # variance of what nothing explains, at least
DRAWN = 4096  # coefficients, to learn how unequal they are
TOGETHER = 1024  # encodings


@dataclass(frozen=True)
class PublicPart:
    """What is known of the public images of M encodings.

    Attributes:
        index: i64[M,j] into the pool; -1 for none.
        coefficients: f32[M,j]; 0 for none.
        total: f32[M,D], their sum.
        variance: f32[M], of a pixel of the public images that were not found.
    """

    index: Tensor
    coefficients: Tensor
    total: Tensor
    variance: Tensor

    @classmethod
    def unknown(cls, variance: Tensor, pixels: int) -> PublicPart:
        """Return that nothing is known.

        Args:
            variance: f32[M].
            pixels: D.
        """
        none = torch.zeros(len(variance), 0)
        return cls(none.long(), none, torch.zeros(len(variance), pixels), variance)

    @property
    def found(self) -> bool:
        """Whether anything is known."""
        return bool(self.coefficients.any())

    def rows(self, rows: Tensor) -> PublicPart:
        """Return those of some of the encodings, i64[m]."""
        return PublicPart(
            self.index[rows],
            self.coefficients[rows],
            self.total[rows],
            self.variance[rows],
        )


class PublicPursuit:
    """The search of a pool for the public part of encodings."""

    def __init__(
        self, pool: MixingPool, config: EncoderConfig, rng: np.random.Generator
    ) -> None:
        """Measure the pool.

        Args:
            pool: that the encodings take their public images from.
            config: how they were made.
            rng: draws samples.
        """
        self.pool = pool
        self.count = config.public_count
        self.largest = config.max_coefficient
        self.spread = public_spread(config, rng)
        self.squares = MatchedFilter.of_pool(pool, True, rng)
        self.pixels = MatchedFilter.of_pool(pool, False, rng)

    def blind(self, encodings: Tensor, private: Tensor) -> PublicPart:
        """Search with nothing known of the private images.

        Args:
            encodings: f32[M,C,H,W], normalised.
            private: f32[M,p], coefficients.
        """
        mixed = torch.zeros(1, encodings[0].numel()).expand(len(encodings), -1)
        variance = private.square().sum(1)
        usual = self._squares(encodings, mixed).mean(0)
        found = []
        for rows in _blocks(len(encodings)):
            some = encodings[rows]
            one = _Pursuit(self, some, private[rows], mixed[rows], variance[rows])
            squares = self._squares(some, mixed[rows]) - usual
            one.add(self.squares.best(squares, one.index))
            one.add_until(min(BLIND, self.count))
            found.append(one.result())
        return _joined(found)

    def given(
        self, encodings: Tensor, private: Tensor, mixed: Tensor, variance: Tensor
    ) -> PublicPart:
        """Search with an estimate of the private part.

        Args:
            encodings: f32[M,C,H,W], normalised.
            private: f32[M,p], coefficients.
            mixed: f32[M,D], the private part.
            variance: f32[M], of a pixel of its error.
        """
        usual = self._squares(encodings, mixed).mean(0)
        found = []
        for rows in _blocks(len(encodings)):
            some = encodings[rows]
            one = _Pursuit(self, some, private[rows], mixed[rows], variance[rows])
            # Where the private part is small, squares tell more than signs.
            squares = self._squares(some, mixed[rows]) - usual
            one.add(one.best().or_better(self.squares.best(squares, one.index)))
            one.add_until(self.count)
            found.append(one.result())
        return _joined(found)

    def _squares(self, encodings: Tensor, mixed: Tensor) -> Tensor:
        """Return what the squares of encodings have beyond those of private parts."""
        private = features_of(mixed.reshape(encodings.shape), True)
        return features_of(encodings, True) - private


class _Pursuit:
    """Some encodings, and the public images found in them so far."""

    def __init__(
        self,
        pursuit: PublicPursuit,
        encodings: Tensor,
        private: Tensor,
        mixed: Tensor,
        private_variance: Tensor,
    ) -> None:
        self.pursuit = pursuit
        self.shape = encodings.shape[1:]
        self.magnitudes = encodings.flatten(1).abs()
        self.mixed = mixed
        self.private_variance = private_variance
        self.rest = (1 - private.sum(1)).clamp_min(0)
        count = len(encodings)
        self.index = torch.zeros(count, 0, dtype=torch.int64)
        self.coefficients, self.leads = torch.zeros(count, 0), torch.zeros(count, 0)
        self.total = torch.zeros_like(self.magnitudes)

    def add_until(self, count: int) -> None:
        """Take images until there are so many."""
        while self.index.shape[1] < count:
            self.add(self.best())

    def best(self) -> Match:
        """Return the image that fits best what is left, with signs as expected."""
        left = self._unfolded() - self.total
        features = features_of(left.view(-1, *self.shape), False)
        return self.pursuit.pixels.best(features, self.index)

    def add(self, match: Match) -> None:
        """Take an image more, and fit the coefficients of all."""
        first = match.coefficient.clamp(MIN_COEFFICIENT, self.pursuit.largest)
        self.index = torch.cat([self.index, match.index[:, None]], 1)
        self.leads = torch.cat([self.leads, match.lead[:, None]], 1)
        self.coefficients = torch.cat([self.coefficients, first[:, None]], 1)
        self._fit()

    def _variance(self, coefficients: Tensor, found: Tensor) -> Tensor:
        """Return the variance of a pixel of the public images not found, f32[m]."""
        left = (self.rest - coefficients.sum(1)).clamp_min(0)
        missing = self.pursuit.count - found
        # Of m images as unequal as all of them are.
        unequal = self.pursuit.spread * self.pursuit.count / missing.clamp_min(1)
        known = torch.zeros_like(left)
        some = left.square() * unequal.clamp_max(1)
        return torch.where(missing > 0, some, known) + EXACT

    def _unfolded(self) -> Tensor:
        """Return the expected encodings without signs, less their private part."""
        found = torch.full_like(self.rest, self.index.shape[1])
        variance = self.private_variance + self._variance(self.coefficients, found)
        expected = self.mixed + self.total
        lean = torch.tanh(self.magnitudes * expected / variance[:, None])
        return lean * self.magnitudes - self.mixed

    def _fit(self) -> None:
        """Fit coefficients by generalised least squares, with signs as expected."""
        filtering = self.pursuit.pixels
        pool, white = filtering.pool, filtering.whitening
        images = pool.statistics.normalise(pool.images[self.index.flatten()])
        seen = white.whitened(features_of(images, False))
        whitened = seen.view(*self.index.shape, -1)
        pixels = images.flatten(1).view(*self.index.shape, -1)
        products = whitened @ whitened.transpose(1, 2)
        products += torch.diag_embed(RIDGE * products.diagonal(dim1=1, dim2=2))
        for _ in range(FIT_ROUNDS):
            self.total = (self.coefficients[:, None] @ pixels)[:, 0]
            features = features_of(self._unfolded().view(-1, *self.shape), False)
            values = (whitened @ white.whitened(features)[:, :, None])[..., 0]
            solved = torch.linalg.solve(products, values).clamp_min(MIN_COEFFICIENT)
            # Coefficients of an encoding sum to 1.
            excess = solved.sum(1) / self.rest.clamp_min(MIN_COEFFICIENT)
            self.coefficients = solved / excess.clamp_min(1)[:, None]
        self.total = (self.coefficients[:, None] @ pixels)[:, 0]

    def result(self) -> PublicPart:
        """Keep the images up to the first that is not sure."""
        sure = (self.leads > SURE).long().cumprod(1).bool()
        kept = torch.where(sure, self.coefficients, 0)
        pool = self.pursuit.pool
        total = torch.zeros_like(self.total)
        for column, weight in zip(self.index.T, kept.T, strict=True):
            images = pool.statistics.normalise(pool.images[column]).flatten(1)
            total += weight[:, None] * images
        return PublicPart(
            torch.where(sure, self.index, -1),
            kept,
            total,
            self._variance(kept, sure.sum(1).float()),
        )


def public_spread(config: EncoderConfig, rng: np.random.Generator) -> float:
    """Return how unequal public coefficients are.

    The mean sum of their squares over the square of their sum; 0 without public images.

    Args:
        config: how encodings are made.
        rng: draws coefficients.
    """
    if not config.public_count:
        return 0.0
    drawn = draw_coefficients(DRAWN, config, rng)[:, config.private_count :]
    return float((drawn.square().sum(1) / drawn.sum(1).square()).mean())


def _blocks(count: int) -> list[Tensor]:
    return list(torch.split(torch.arange(count), TOGETHER))


def _joined(parts: list[PublicPart]) -> PublicPart:
    return PublicPart(
        torch.cat([one.index for one in parts]),
        torch.cat([one.coefficients for one in parts]),
        torch.cat([one.total for one in parts]),
        torch.cat([one.variance for one in parts]),
    )
