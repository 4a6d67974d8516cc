"""Absolute values of encodings that are known up to scale and offset.

An update of a sign-invariant network depends on |e|, standardised in each image: an
attack on it returns a |e| + b with a and b unknown. InstaHide's mixtures have pixels
near 0 in every image, so that the smallest value is b.
"""

from __future__ import annotations

from torch import Tensor

LOWEST = 0.002  # share of pixels below the offset, which single outliers move less


def shifted_to_zero(images: Tensor) -> Tensor:
    """Return absolute values up to scale, from values up to scale and offset.

    Args:
        images: f32[n,C,H,W], each a |e| + b; a may be negative, as the sign of a whole
            image is free in some attacks.

    Returns:
        f32[n,C,H,W], not negative, scaled to mean square 1 in each image.
    """
    flat = images.flatten(1)  # [n,C,H,W] -> [n,C*H*W]
    # |e| of a mixture has its long tail above: elsewhere the image is a negative.
    centred = flat - flat.mean(dim=1, keepdim=True)
    skewed = centred.pow(3).mean(dim=1, keepdim=True)
    upright = centred * skewed.sign()
    shifted = (upright - upright.quantile(LOWEST, dim=1, keepdim=True)).clamp_min(0)
    scale = shifted.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    return (shifted / scale).view_as(images)
