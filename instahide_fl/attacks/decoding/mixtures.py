"""Encodings of one client with what is known of their keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from instahide_fl.errors import ShapeError
from instahide_fl.types import ChannelStatistics

EXACT = 1e-4  # variance of errors of encodings that are exact but for rounding


@dataclass(frozen=True)
class Mixtures:
    """Encodings, and how they were mixed. All tensors are on one device.

    Attributes:
        encodings: f32[E,C,H,W], normalised.
        components: i64[E,p], which of the n private images, 0..n-1.
        coefficients: f32[E,k], private images first.
        count: n.
        public: f32[E,C,H,W], the sum of the public images times their coefficients, see
            `public_part`; None if unknown. It is noise then.
        error_variance: of the encodings themselves, in normalised units, where they
            were recovered and not given.
        unknown_variance: f32[E], of a pixel of what is neither private nor `public`;
            None to take that of all public images, or nothing where `public` is given.
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
        """n, C, H, W."""
        return (self.count, *self.encodings.shape[1:])

    @property
    def encodings_per_image(self) -> float:
        """T = E / n: equations for each unknown pixel."""
        return len(self.encodings) / self.count

    @property
    def weights(self) -> Tensor:
        """f32[E,p]: coefficients of the private images."""
        return self.coefficients[:, : self.components.shape[1]]

    @property
    def public_variance(self) -> Tensor:
        """f32[E]: variance of a pixel of the unknown public part.

        Public images are normalised with constants of their own pool, so that a pixel
        of one has mean 0 and variance 1.
        """
        if self.unknown_variance is not None:
            return self.unknown_variance
        if self.public is not None:
            return torch.zeros_like(self.coefficients[:, 0])
        return self.coefficients[:, self.components.shape[1] :].square().sum(1)

    @property
    def noise_variance(self) -> Tensor:
        """f32[E]: variance of all that A x does not explain."""
        return self.public_variance + self.error_variance

    @cached_property
    def mixing(self) -> Tensor:
        """f32[E,n], sparse: A."""
        return sparse_rows(self.components, self.weights, self.count)


def sparse_rows(columns: Tensor, values: Tensor, width: int) -> Tensor:
    """Return a sparse matrix with as many entries in each row.

    Args:
        columns: i64[E,m]; a column named twice in a row counts twice.
        values: f32[E,m].
        width: number of columns.

    Returns:
        f32[E,width], sparse, coalesced.
    """
    total, entries = columns.shape
    row = torch.arange(total, device=columns.device).repeat_interleave(entries)
    matrix = torch.sparse_coo_tensor(
        torch.stack([row, columns.flatten()]),
        values.flatten(),
        (total, width),
        check_invariants=True,
    )
    return matrix.coalesce()


def gram(columns: Tensor, left: Tensor, right: Tensor, width: int) -> Tensor:
    """Return the product of two matrices like `sparse_rows`, the first transposed.

    Args:
        columns: i64[E,m], of both.
        left: f32[E,m].
        right: f32[E,m].
        width: number of columns.

    Returns:
        f32[width,width], dense.
    """
    cells = columns[:, :, None] * width + columns[:, None, :]
    products = left[:, :, None] * right[:, None, :]
    total = products.new_zeros(width * width)
    return total.index_add_(0, cells.flatten(), products.flatten()).view(width, width)


def public_part(images: Tensor, public_index: Tensor, coefficients: Tensor) -> Tensor:
    """Return what the public images add to each encoding.

    Args:
        images: f32[N,C,H,W], the pool, normalised with its own constants.
        public_index: i64[E,m] into the pool.
        coefficients: f32[E,k], private images first, so that the last m are public.

    Returns:
        f32[E,C,H,W].
    """
    private = coefficients.shape[1] - public_index.shape[1]
    total = images.new_zeros(len(public_index), *images.shape[1:])
    weights = coefficients[:, private:].T
    for column, weight in zip(public_index.T, weights, strict=True):
        total.addcmul_(images[column], weight[:, None, None, None])
    return total


def largest_pixel(statistics: ChannelStatistics) -> Tensor:
    """Return the largest magnitude of a normalised pixel, f32[C].

    The valid range itself is not symmetric, but decoders learn a pixel's sign last.
    """
    mean, std = torch.tensor(statistics.mean), torch.tensor(statistics.std)
    return torch.maximum(mean, 1 - mean) / std
