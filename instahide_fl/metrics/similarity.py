"""How alike two images are: mean squared error, PSNR and SSIM, for whole batches.

The data range is 1 always. Encodings leave [0, 1] and are compared all the same, not
clipped: a data range measured on the images would differ from pair to pair.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from instahide_fl.errors import ShapeError

MAX_PSNR = 100.0
"""dB; given to identical images, and to all that differ less."""

WINDOW = 7  # pixels; uniform, scikit-image's default
# Constants of Wang et al. 2004 for a data range of 1, scikit-image's defaults.
C1 = 0.01**2
C2 = 0.03**2

MAX_PIXELS = 2**22  # of image pairs held at once, 16 MB

Moments: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Images less 0.5, and their mean and mean square in each window."""


def mse(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared error.

    Args:
        first: f32[...,C,H,W], in units of [0, 1].
        second: f32[...,C,H,W], in units of [0, 1]; leading dimensions broadcast.

    Returns:
        f64[...].

    Raises:
        ShapeError: the images differ in shape.
    """
    _check(first, second)
    return (first.double() - second.double()).square().mean(dim=(-3, -2, -1))


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio, of data range 1.

    Args:
        first: f32[...,C,H,W], in units of [0, 1].
        second: f32[...,C,H,W], in units of [0, 1]; leading dimensions broadcast.

    Returns:
        f64[...] in dB, at most `MAX_PSNR`.

    Raises:
        ShapeError: the images differ in shape.
    """
    floor = 10 ** (-MAX_PSNR / 10)
    return -10 * mse(first, second).clamp_min(floor).log10()


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity, as scikit-image's default computes it.

    A uniform window of 7x7 pixels, sample covariance, data range 1, mean over channels
    (Wang et al., "Image Quality Assessment: From Error Visibility to Structural
    Similarity", IEEE TIP 2004). Images with a side below 7 get the largest odd window
    that fits.

    Args:
        first: f32[...,C,H,W], in units of [0, 1].
        second: f32[...,C,H,W], in units of [0, 1]; leading dimensions broadcast.

    Returns:
        f64[...] in [-1, 1].

    Raises:
        ShapeError: the images differ in shape, or a side is shorter than 3.
    """
    _check(first, second)
    window = _window(first)
    return _similarity(_moments(first, window), _moments(second, window), window)


def pairwise_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity of each first image with each second one.

    Args:
        first: f32[M,C,H,W], in units of [0, 1].
        second: f32[N,C,H,W], in units of [0, 1].

    Returns:
        f64[M,N] in [-1, 1].

    Raises:
        ShapeError: the images differ in shape, or a side is shorter than 3.
    """
    _check(first, second)
    window = _window(first)
    rows = max(1, MAX_PIXELS // max(1, second.numel()))
    others = _moments(second, window)
    # [rows,1,C,H,W] with [N,C,H,W] -> [rows,N]
    parts = [
        _similarity(_moments(part[:, None], window), others, window)
        for part in torch.split(first, rows)
    ]
    return torch.cat(parts)


def _check(first: Tensor, second: Tensor) -> None:
    if first.ndim < 3 or first.shape[-3:] != second.shape[-3:]:
        raise ShapeError(
            f"images to compare must be [...,C,H,W] of one shape, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )


def _window(images: Tensor) -> int:
    side = min(images.shape[-2:])
    if side < 3:
        raise ShapeError(
            f"SSIM needs images of at least 3x3 pixels, got {tuple(images.shape[-2:])}"
        )
    return min(WINDOW, side if side % 2 else side - 1)


def _moments(images: Tensor, window: int) -> Moments:
    # Shifted so that squares cancel less: single precision is then exact to 1e-7.
    centred = images.float() - 0.5
    return centred, _local(centred, window), _local(centred.square(), window)


def _similarity(first: Moments, second: Moments, window: int) -> Tensor:
    (x, mean_x, square_x), (y, mean_y, square_y) = first, second
    sample = window**2 / (window**2 - 1)
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    covariance = _local(x * y, window) - mean_x * mean_y
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    luminance = 2 * mean_x * mean_y + C1
    luminance /= mean_x.square() + mean_y.square() + C1
    structure = (2 * sample * covariance + C2) / (sample * variances + C2)
    return (luminance * structure).double().mean(dim=(-3, -2, -1))


def _local(images: Tensor, window: int) -> Tensor:
    """Return means over all windows inside the image, as two matrix products."""
    height, width = images.shape[-2:]
    across = images @ _band(width, window).T  # [...,H,W] -> [...,H,W-window+1]
    return _band(height, window) @ across  # -> [...,H-window+1,W-window+1]


def _band(side: int, window: int) -> Tensor:
    """Return f32[side-window+1,side], each row the mean over one window."""
    offset = torch.arange(side) - torch.arange(side - window + 1)[:, None]
    return ((offset >= 0) & (offset < window)).float() / window
