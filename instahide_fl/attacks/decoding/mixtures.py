"""Encodings of one client, with what is known of their keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from instahide_fl.errors import ShapeError
from instahide_fl.types import ChannelStatistics

EXACT = 1e-4  # variance of the errors of encodings that are exact but for rounding


@dataclass(frozen=True)
class Mixtures:
    """Encodings, and how they were mixed. All tensors are on one device.

    Attributes:
        encodings: f32[E,C,H,W], normalised.
        components: i64[E,p], which private images each encoding mixes, 0..n-1.
        coefficients: f32[E,k], the coefficients, those of private images first.
        count: The number n of private images.
        public: f32[E,C,H,W], the sum of the public images times their coefficients, see
            `public_part`; None if unknown. It is treated as noise then.
        error_variance: The variance of the encodings' own errors, in normalised units,
            where they were recovered by another attack.
        unknown_variance: f32[E], the variance of a pixel of what is neither private nor
            `public`; None for that of all public images, or 0 with `public`.
    """

    encodings: Tensor
    components: Tensor
    coefficients: Tensor
    count: int
    public: Tensor | None = None
    error_variance: float = EXACT
    unknown_variance: Tensor | None = None

    def __post_init__(self) -> None:
        total, private = self.components.shape
        if len(self.encodings) != total or len(self.coefficients) != total:
            raise ShapeError(
                f"{len(self.encodings)} encodings need as many rows of components and "
                f"coefficients, got {tuple(self.components.shape)} and "
                f"{tuple(self.coefficients.shape)}"
            )
        if self.coefficients.shape[1] < private:
            raise ShapeError(
                f"{private} private images need as many coefficients at least, got "
                f"{self.coefficients.shape[1]}"
            )
        if self.public is not None and self.public.shape != self.encodings.shape:
            raise ShapeError(
                f"the public part must have the shape of the encodings "
                f"{tuple(self.encodings.shape)}, got {tuple(self.public.shape)}"
            )

    @property
    def images_shape(self) -> tuple[int, ...]:
        """The shape of the private images, (n, C, H, W)."""
        return (self.count, *self.encodings.shape[1:])

    @property
    def encodings_per_image(self) -> float:
        """T = E / n, the number of equations for each unknown pixel."""
        return len(self.encodings) / self.count

    @property
    def weights(self) -> Tensor:
        """f32[E,p]: the coefficients of the private images."""
        return self.coefficients[:, : self.components.shape[1]]

    @property
    def public_variance(self) -> Tensor:
        """f32[E]: the variance of a pixel of the unknown public part.

        Public images are normalised with the constants of their own pool, so that a
        pixel of one has mean 0 and variance 1.
        """
        if self.unknown_variance is not None:
            return self.unknown_variance
        if self.public is not None:
            return torch.zeros_like(self.coefficients[:, 0])
        return self.coefficients[:, self.components.shape[1] :].square().sum(1)

    @property
    def noise_variance(self) -> Tensor:
        """f32[E]: the variance of all that A x does not explain."""
        return self.public_variance + self.error_variance

    @cached_property
    def mixing(self) -> Tensor:
        """f32[E,n], sparse: the matrix A."""
        return sparse_rows(self.components, self.weights, self.count)


def sparse_rows(columns: Tensor, values: Tensor, width: int) -> Tensor:
    """Return a sparse matrix with the same number of entries in each row.

    Args:
        columns: i64[E,m], the column of each entry; entries of one column are summed.
        values: f32[E,m], the values of the entries.
        width: The number of columns.

    Returns:
        f32[E,width], sparse, coalesced.
    """
    total, entries = columns.shape
    # [E] -> [E*m]: the row of each entry
    row = torch.arange(total, device=columns.device).repeat_interleave(entries)
    matrix = torch.sparse_coo_tensor(
        torch.stack([row, columns.flatten()]),
        values.flatten(),
        (total, width),
        check_invariants=True,
    )
    return matrix.coalesce()


def gram(columns: Tensor, first: Tensor, second: Tensor, width: int) -> Tensor:
    """Return the product of two matrices like `sparse_rows`, the first transposed.

    Args:
        columns: i64[E,m], the column of each entry, in both matrices.
        first: f32[E,m], the values of the first matrix.
        second: f32[E,m], the values of the second matrix.
        width: The number of columns.

    Returns:
        f32[width,width], dense.
    """
    # [E,m,1] and [E,1,m] -> [E,m,m]: each pair of entries of a row adds to one cell
    cells = columns[:, :, None] * width + columns[:, None, :]
    products = first[:, :, None] * second[:, None, :]
    total = products.new_zeros(width * width)
    return total.index_add_(0, cells.flatten(), products.flatten()).view(width, width)


def public_part(images: Tensor, public_index: Tensor, coefficients: Tensor) -> Tensor:
    """Return what the public images add to each encoding.

    Args:
        images: f32[N,C,H,W], the pool, normalised with its own constants.
        public_index: i64[E,m], rows of the pool.
        coefficients: f32[E,k], those of private images first: the last m are public.

    Returns:
        f32[E,C,H,W].
    """
    num_private = coefficients.shape[1] - public_index.shape[1]
    total = images.new_zeros(len(public_index), *images.shape[1:])
    weights = coefficients[:, num_private:].T
    # Image by image, in order: float sums depend on it, and memory is limited.
    for column, weight in zip(public_index.T, weights, strict=True):
        total.addcmul_(images[column], weight[:, None, None, None])
    return total


def largest_pixel(statistics: ChannelStatistics) -> Tensor:
    """Return the largest magnitude of a normalised pixel, f32[C].

    The valid range is not symmetric about 0, but decoders learn a pixel's sign last:
    the bound must hold for either sign.
    """
    mean, std = torch.tensor(statistics.mean), torch.tensor(statistics.std)
    return torch.maximum(mean, 1 - mean) / std
