"""What may be undone in a reconstruction before it is called a failure.

- The sign: random signs leave the sign of a whole image free, and everybody can look at
  an image and at its negative.
- The colours: brightness and contrast of each channel, fitted to the original. No
  adversary can do that without the original: what is measured after it is an oracle's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instahide_fl.types import ChannelStatistics


def negative(images: Tensor, statistics: ChannelStatistics) -> Tensor:
    """Return the images of opposite sign in normalised units.

    Args:
        images: f32[...,C,H,W], in units of [0, 1], not clipped.
        statistics: Constants that images are normalised with.

    Returns:
        2 mean - x, of the same shape.
    """
    mean = torch.tensor(statistics.mean, dtype=images.dtype).view(-1, 1, 1)
    return 2 * mean - images


def in_likelier_sign(images: Tensor, statistics: ChannelStatistics) -> Tensor:
    """Return images, or the negatives of all, whichever leave [0, 1] less.

    Args:
        images: f32[n,C,H,W], normalised.
        statistics: Constants that images are normalised with.

    Returns:
        f32[n,C,H,W], normalised.
    """
    excess, negative_excess = (
        (pixels - pixels.clamp(0, 1)).square().sum()
        for pixels in (statistics.restore(images), statistics.restore(-images))
    )
    return -images if negative_excess < excess else images


def fit_colours(images: Tensor, originals: Tensor) -> Tensor:
    """Scale and shift each channel of each image to fit its original: an oracle.

    Args:
        images: f32[...,C,H,W].
        originals: f32[...,C,H,W], of the same shape.

    Returns:
        f64[...,C,H,W], a x + b with least squared error to the original. A channel
        without any contrast becomes the original's mean.
    """
    images, originals = images.double(), originals.double()
    mean = images.mean(dim=(-2, -1), keepdim=True)
    target = originals.mean(dim=(-2, -1), keepdim=True)
    centred = images - mean
    products = (centred * (originals - target)).sum(dim=(-2, -1), keepdim=True)
    squares = centred.square().sum(dim=(-2, -1), keepdim=True)
    slope = torch.where(squares > 1e-12, products / squares.clamp_min(1e-12), 0.0)
    return slope * centred + target
