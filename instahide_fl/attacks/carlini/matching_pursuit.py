"""The public part of encodings, image by image.

Source: our own. The squares of a mixture contain the square of each of its images, so
squares find the largest public image, whatever the signs (`pool_search`). A known image
tells the sign of the pixels where it dominates; with these signs the remainder is
linear in the other images, and tells the next one: matching pursuit (Mallat and Zhang,
1993) behind an unknown sign mask.
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

MIN_LEAD = 4.5  # standard deviations by which images that are believed lead
MAX_BLIND_IMAGES = 3  # public images sought before private ones are known
FIT_ROUNDS = 3
RIDGE = 1e-3  # of the equations of coefficients, relative to their diagonal
MIN_COEFFICIENT = 0.03
MIN_VARIANCE = 2e-3  # of a pixel of what nothing explains
COEFFICIENT_DRAWS = 4096  # to learn how unequal coefficients are
ENCODINGS_PER_BLOCK = 1024  # limits memory


@dataclass(frozen=True)
class PublicPart:
    """What is known of the public images of M encodings.

    Attributes:
        index: i64[M,j], rows of the pool; -1 for none.
        coefficients: f32[M,j], the coefficients of these images; 0 for none.
        total: f32[M,D], the weighted sum of these images.
        variance: f32[M], the variance of a pixel of the public images not found.
    """

    index: Tensor
    coefficients: Tensor
    total: Tensor
    variance: Tensor

    @classmethod
    def unknown(cls, variance: Tensor, pixels: int) -> PublicPart:
        """Return a public part of which nothing is known.

        Args:
            variance: f32[M], the variance of a pixel of the public images.
            pixels: The number D of pixels.
        """
        none = torch.zeros(len(variance), 0)
        return cls(none.long(), none, torch.zeros(len(variance), pixels), variance)

    @property
    def has_images(self) -> bool:
        """Whether any public image is known."""
        return bool(self.coefficients.any())

    def rows(self, rows: Tensor) -> PublicPart:
        """Return the public part of some of the encodings, i64[m]."""
        return PublicPart(
            self.index[rows],
            self.coefficients[rows],
            self.total[rows],
            self.variance[rows],
        )


class PublicMatchingPursuit:
    """The search of a pool for the public part of encodings."""

    def __init__(
        self, pool: MixingPool, config: EncoderConfig, rng: np.random.Generator
    ) -> None:
        """Measure the pool.

        Args:
            pool: The pool that the encodings take their public images from.
            config: The settings of the encoder that made them.
            rng: The generator of samples of coefficients and of the pool.
        """
        self.pool = pool
        self.num_public = config.public_count
        self.max_coefficient = config.max_coefficient
        # These draw from `rng` in turn: their order is part of what a seed repeats.
        self.concentration = public_concentration(config, rng)
        self.squares = MatchedFilter.of_pool(pool, True, rng)
        self.pixels = MatchedFilter.of_pool(pool, False, rng)

    def search_blind(
        self, encodings: Tensor, private_coefficients: Tensor
    ) -> PublicPart:
        """Search with nothing known of the private images.

        Args:
            encodings: f32[M,C,H,W], normalised.
            private_coefficients: f32[M,p].
        """
        mixed = torch.zeros(1, encodings[0].numel()).expand(len(encodings), -1)
        # A normalised pixel of a private image has mean 0 and variance 1.
        variance = private_coefficients.square().sum(1)
        usual = self._excess_squares(encodings, mixed).mean(0)
        parts = []
        for rows in _blocks(len(encodings)):
            block = encodings[rows]
            search = _BlockPursuit(
                self, block, private_coefficients[rows], mixed[rows], variance[rows]
            )
            squares = self._excess_squares(block, mixed[rows]) - usual
            search.add(self.squares.best(squares, search.index))
            search.add_until(min(MAX_BLIND_IMAGES, self.num_public))
            parts.append(search.confident_part())
        return _concatenated(parts)

    def search_given_private(
        self,
        encodings: Tensor,
        private_coefficients: Tensor,
        mixed: Tensor,
        variance: Tensor,
    ) -> PublicPart:
        """Search with an estimate of the private part.

        Args:
            encodings: f32[M,C,H,W], normalised.
            private_coefficients: f32[M,p].
            mixed: f32[M,D], the estimated private part.
            variance: f32[M], the variance of a pixel's error in that estimate.
        """
        usual = self._excess_squares(encodings, mixed).mean(0)
        parts = []
        for rows in _blocks(len(encodings)):
            block = encodings[rows]
            search = _BlockPursuit(
                self, block, private_coefficients[rows], mixed[rows], variance[rows]
            )
            # Where the private part is small, squares tell more than signs.
            squares = self._excess_squares(block, mixed[rows]) - usual
            by_squares = self.squares.best(squares, search.index)
            search.add(search.best().or_better(by_squares))
            search.add_until(self.num_public)
            parts.append(search.confident_part())
        return _concatenated(parts)

    def _excess_squares(self, encodings: Tensor, mixed: Tensor) -> Tensor:
        """Return what the squares of encodings have beyond those of private parts."""
        private = features_of(mixed.reshape(encodings.shape), True)
        return features_of(encodings, True) - private


class _BlockPursuit:
    """The search for some encodings, and the public images found in them so far."""

    def __init__(
        self,
        pursuit: PublicMatchingPursuit,
        encodings: Tensor,
        private_coefficients: Tensor,
        mixed: Tensor,
        private_variance: Tensor,
    ) -> None:
        self.pursuit = pursuit
        self.shape = encodings.shape[1:]
        self.magnitudes = encodings.flatten(1).abs()
        self.mixed = mixed
        self.private_variance = private_variance
        # The coefficients of an encoding sum to 1: the public ones make up the rest.
        self.public_sum = (1 - private_coefficients.sum(1)).clamp_min(0)
        count = len(encodings)
        self.index = torch.zeros(count, 0, dtype=torch.int64)
        self.coefficients, self.leads = torch.zeros(count, 0), torch.zeros(count, 0)
        self.total = torch.zeros_like(self.magnitudes)

    def add_until(self, count: int) -> None:
        """Add images until each encoding has `count`."""
        while self.index.shape[1] < count:
            self.add(self.best())

    def best(self) -> Match:
        """Return the image that best fits the remainder, with signs as expected."""
        remainder = self._unfolded() - self.total
        features = features_of(remainder.view(-1, *self.shape), False)
        return self.pursuit.pixels.best(features, self.index)

    def add(self, match: Match) -> None:
        """Add an image to each encoding, and fit the coefficients of all again."""
        first = match.coefficient.clamp(MIN_COEFFICIENT, self.pursuit.max_coefficient)
        self.index = torch.cat([self.index, match.index[:, None]], 1)
        self.leads = torch.cat([self.leads, match.lead[:, None]], 1)
        self.coefficients = torch.cat([self.coefficients, first[:, None]], 1)
        self._fit()

    def _variance(self, coefficients: Tensor, num_found: Tensor) -> Tensor:
        """Return the variance of a pixel of the public images not found, f32[m]."""
        missing_sum = (self.public_sum - coefficients.sum(1)).clamp_min(0)
        missing = self.pursuit.num_public - num_found
        # The missing images are taken to be as unequal as all public ones are.
        concentration = (
            self.pursuit.concentration * self.pursuit.num_public / missing.clamp_min(1)
        )
        variance = missing_sum.square() * concentration.clamp_max(1)
        nothing = torch.zeros_like(missing_sum)
        return torch.where(missing > 0, variance, nothing) + MIN_VARIANCE

    def _unfolded(self) -> Tensor:
        """Return the expected encodings without signs, less their private part."""
        num_found = torch.full_like(self.public_sum, self.index.shape[1])
        variance = self.private_variance + self._variance(self.coefficients, num_found)
        expected = self.mixed + self.total
        sign = torch.tanh(self.magnitudes * expected / variance[:, None])
        return sign * self.magnitudes - self.mixed

    def _fit(self) -> None:
        """Fit coefficients by generalised least squares, with signs as expected."""
        pixel_filter = self.pursuit.pixels
        pool, whitening = pixel_filter.pool, pixel_filter.whitening
        images = pool.statistics.normalise(pool.images[self.index.flatten()])
        features = whitening.whitened(features_of(images, False))
        whitened = features.view(*self.index.shape, -1)  # [m*j,d] -> [m,j,d]
        # [m*j,C,H,W] -> [m,j,D]
        pixels = images.flatten(1).view(*self.index.shape, -1)
        products = whitened @ whitened.transpose(1, 2)  # [m,j,j]
        products += torch.diag_embed(RIDGE * products.diagonal(dim1=1, dim2=2))
        for _ in range(FIT_ROUNDS):
            self.total = (self.coefficients[:, None] @ pixels)[:, 0]  # [m,1,D] -> [m,D]
            features = features_of(self._unfolded().view(-1, *self.shape), False)
            # [m,j,d] @ [m,d,1] -> [m,j]
            values = (whitened @ whitening.whitened(features)[:, :, None])[..., 0]
            solved = torch.linalg.solve(products, values).clamp_min(MIN_COEFFICIENT)
            # Public coefficients cannot sum to more than private ones leave of 1.
            excess = solved.sum(1) / self.public_sum.clamp_min(MIN_COEFFICIENT)
            self.coefficients = solved / excess.clamp_min(1)[:, None]
        self.total = (self.coefficients[:, None] @ pixels)[:, 0]

    def confident_part(self) -> PublicPart:
        """Return the images up to the first whose lead is too small."""
        # An image is sought in what the earlier ones leave: after a wrong one, none
        # is to be believed.
        confident = (self.leads > MIN_LEAD).long().cumprod(1).bool()
        coefficients = torch.where(confident, self.coefficients, 0)
        pool = self.pursuit.pool
        total = torch.zeros_like(self.total)
        # Image by image, in order: float sums depend on it, and memory is limited.
        for column, weight in zip(self.index.T, coefficients.T, strict=True):
            images = pool.statistics.normalise(pool.images[column]).flatten(1)
            total += weight[:, None] * images
        return PublicPart(
            torch.where(confident, self.index, -1),
            coefficients,
            total,
            self._variance(coefficients, confident.sum(1).float()),
        )


def public_concentration(config: EncoderConfig, rng: np.random.Generator) -> float:
    """Return how unequal public coefficients are.

    The mean sum of their squares over the square of their sum, from 1 / count (equal)
    to 1 (one image has all); 0 without public images.

    Args:
        config: The settings of the encoder.
        rng: The generator of coefficients.
    """
    if not config.public_count:
        return 0.0
    drawn = draw_coefficients(COEFFICIENT_DRAWS, config, rng)
    public = drawn[:, config.private_count :]
    return float((public.square().sum(1) / public.sum(1).square()).mean())


def _blocks(count: int) -> list[Tensor]:
    return list(torch.split(torch.arange(count), ENCODINGS_PER_BLOCK))


def _concatenated(parts: list[PublicPart]) -> PublicPart:
    return PublicPart(
        torch.cat([part.index for part in parts]),
        torch.cat([part.coefficients for part in parts]),
        torch.cat([part.total for part in parts]),
        torch.cat([part.variance for part in parts]),
    )
