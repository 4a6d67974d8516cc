"""Comparing reconstructions with what they are meant to show, in every fair way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from instahide_fl.metrics.correction import fit_colours, negative
from instahide_fl.metrics.similarity import mse, pairwise_ssim, psnr, ssim
from instahide_fl.types import ChannelStatistics


@dataclass(frozen=True)
class Comparison:
    """Reconstructions against originals, one row a pair.

    Attributes:
        ssim: f64[R] in [-1, 1], SSIM as reconstructed.
        psnr: f64[R] in dB, PSNR as reconstructed.
        mse: f64[R], mean squared error as reconstructed.
        sign_ssim: f64[R], SSIM of the better of x and -x.
        sign_psnr: f64[R] in dB, PSNR of the better of x and -x.
        affine_ssim: f64[R], SSIM after the oracle's fit of the colours.
        affine_psnr: f64[R] in dB, PSNR after the oracle's fit of the colours.
        choice: i64[R], which of its candidates a reconstruction was compared with.
        flipped: bool[R], whether -x resembles the original more than x.
    """

    ssim: Tensor
    psnr: Tensor
    mse: Tensor
    sign_ssim: Tensor
    sign_psnr: Tensor
    affine_ssim: Tensor
    affine_psnr: Tensor
    choice: Tensor
    flipped: Tensor

    def __len__(self) -> int:
        return len(self.ssim)

    @classmethod
    def concatenate(cls, comparisons: Sequence[Comparison]) -> Comparison:
        """Put comparisons, at least one, below each other."""
        return cls(
            **{
                field.name: torch.cat([getattr(c, field.name) for c in comparisons])
                for field in fields(cls)
            }
        )


@dataclass(frozen=True)
class Comparer:
    """Compares images in units of [0, 1], clipped where they must lie there.

    Attributes:
        statistics: Constants that images are normalised with.
        clip: Whether to clip to [0, 1]: private images lie there, encodings do not.
    """

    statistics: ChannelStatistics
    clip: bool

    def to_display_units(self, images: Tensor) -> Tensor:
        """Return images as they are displayed: clipped to [0, 1] if `clip`."""
        return images.clamp(0, 1) if self.clip else images

    def opposite(self, images: Tensor) -> Tensor:
        """Return the negatives, clipped if these images are to be clipped."""
        return self.to_display_units(negative(images, self.statistics))

    def pairwise(self, images: Tensor, originals: Tensor) -> Tensor:
        """Return the SSIM of each image, in its better sign, with each original.

        Args:
            images: f32[M,C,H,W], in units of [0, 1], not clipped.
            originals: f32[N,C,H,W].

        Returns:
            f64[M,N].
        """
        return torch.maximum(
            pairwise_ssim(self.to_display_units(images), originals),
            pairwise_ssim(self.opposite(images), originals),
        )

    def compare(self, images: Tensor, candidates: Tensor) -> Comparison:
        """Compare each image with the most similar of its own candidates.

        All figures speak of the same candidate: the one of highest SSIM in the better
        sign.

        Args:
            images: f32[R,C,H,W], in units of [0, 1], not clipped.
            candidates: f32[R,p,C,H,W].
        """
        plain, opposite = self.to_display_units(images), self.opposite(images)
        # [R,1,C,H,W] with [R,p,C,H,W] -> [R,p]
        similar = torch.maximum(
            ssim(plain[:, None], candidates), ssim(opposite[:, None], candidates)
        )
        choice = similar.argmax(dim=1)
        originals = candidates[torch.arange(len(images)), choice]
        fitted = self.to_display_units(fit_colours(images, originals))
        raw = ssim(plain, originals)
        turned = ssim(opposite, originals)
        return Comparison(
            ssim=raw,
            psnr=psnr(plain, originals),
            mse=mse(plain, originals),
            sign_ssim=torch.maximum(raw, turned),
            sign_psnr=_best(psnr, plain, opposite, originals),
            affine_ssim=ssim(fitted, originals),
            affine_psnr=psnr(fitted, originals),
            choice=choice,
            flipped=turned > raw,
        )


def _best(
    measure: Callable[[Tensor, Tensor], Tensor],
    plain: Tensor,
    opposite: Tensor,
    originals: Tensor,
) -> Tensor:
    return torch.maximum(measure(plain, originals), measure(opposite, originals))
