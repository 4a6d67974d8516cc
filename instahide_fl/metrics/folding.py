"""How alike images are once the signs of their pixels are ignored.

InstaHide flips the signs of pixels, so a decoder often returns an image with the right
absolute values and wrong signs. SSIM calls that a failure, though it may still say
which image it is. Folding an image takes the absolute values of its normalised pixels,
F(x) = |(x - mean) / deviation|, by channel.

The common scale: every channel of every folded image is shifted and scaled to mean 0.5
and standard deviation 0.25, and SSIM is taken with data range 1. Offset and scale of
absolute values are then free, which is all that an update of a sign-invariant network
leaves of them; no original is needed for it, so it is no oracle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instahide_fl.metrics.similarity import ssim
from instahide_fl.types import ChannelStatistics

CENTRE, DEVIATION = 0.5, 0.25  # of every channel: nearly all pixels lie in [0, 1]
MIN_VARIANCE = 1e-12  # below it a channel counts as constant


def fold(images: Tensor, statistics: ChannelStatistics) -> Tensor:
    """Return absolute values of normalised pixels, on the common scale.

    Args:
        images: f32[...,C,H,W], in units of [0, 1], not clipped.
        statistics: Constants that images are normalised with.

    Returns:
        f32[...,C,H,W].
    """
    mean = torch.tensor(statistics.mean, dtype=images.dtype).view(-1, 1, 1)
    # The deviation of the normalisation cancels in the common scale.
    return to_common_scale((images - mean).abs())


def to_common_scale(images: Tensor) -> Tensor:
    """Return images of mean 0.5 and standard deviation 0.25 in every channel.

    Args:
        images: f32[...,C,H,W].

    Returns:
        f32[...,C,H,W]; a channel without contrast becomes 0.5.
    """
    centred = images - images.mean(dim=(-2, -1), keepdim=True)
    variance = centred.square().mean(dim=(-2, -1), keepdim=True)
    scale = torch.where(
        variance > MIN_VARIANCE, variance.clamp_min(MIN_VARIANCE).rsqrt(), 0.0
    )
    return CENTRE + DEVIATION * scale * centred


def folded_ssim(
    images: Tensor, candidates: Tensor, statistics: ChannelStatistics
) -> Tensor:
    """Return the SSIM of each image with its most similar folded candidate.

    An image may have any signs, or be an image of absolute values with any offset and
    scale, or the negative of such an image: the best of the three counts.

    Args:
        images: f32[R,C,H,W], in units of [0, 1], not clipped.
        candidates: f32[R,p,C,H,W], in units of [0, 1].
        statistics: Constants that images are normalised with.

    Returns:
        f64[R] in [-1, 1].
    """
    targets = fold(candidates, statistics)
    unfolded = to_common_scale(images)
    readings = (fold(images, statistics), unfolded, 2 * CENTRE - unfolded)
    # [R,1,C,H,W] with [R,p,C,H,W] -> [R,p]
    similar = [ssim(reading[:, None], targets) for reading in readings]
    return torch.stack(similar).amax(dim=(0, 2))  # [3,R,p] -> [R]


def folded_correlation(
    images: Tensor, originals: Tensor, statistics: ChannelStatistics
) -> Tensor:
    """Return how alike each image is to each folded original, quickly.

    Args:
        images: f32[M,C,H,W], in units of [0, 1], not clipped; read in the same three
            ways as by `folded_ssim`.
        originals: f32[N,C,H,W], in units of [0, 1].
        statistics: Constants that images are normalised with.

    Returns:
        f64[M,N] in [-1, 1], the mean correlation of the channels.
    """
    targets = _as_vectors(fold(originals, statistics))
    folded = _as_vectors(fold(images, statistics)) @ targets.T
    unfolded = _as_vectors(to_common_scale(images)) @ targets.T
    return torch.maximum(folded, unfolded.abs())


def _as_vectors(images: Tensor) -> Tensor:
    """Return f64[n,C*H*W], of length 1 unless a channel lacks contrast."""
    flat = (images.double() - CENTRE).flatten(1)  # [n,C,H,W] -> [n,C*H*W]
    length: float = DEVIATION * flat.shape[1] ** 0.5
    return flat / length
