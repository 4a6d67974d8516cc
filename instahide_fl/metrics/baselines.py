"""What an adversary gets who learned nothing: the measure of every other figure."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def matched_noise(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Return images of the same statistics that show nothing.

    The phases of an image's Fourier transform are replaced by those of white noise, the
    same for all channels. Mean colour, contrast, smoothness and the correlation of
    colours stay what they were: noise from a blurred image is as blurred. Shuffled
    pixels would be a baseline that any smooth blob beats.

    Args:
        images: f32[M,C,H,W].
        rng: The generator that draws the phases.

    Returns:
        f32[M,C,H,W].
    """
    count, _, height, width = images.shape
    white = torch.from_numpy(rng.standard_normal((count, 1, height, width)))
    phases = torch.fft.rfft2(white).angle()
    phases[:, :, 0, 0] = 0  # keeps the mean
    turn = torch.polar(torch.ones_like(phases), phases)
    # [M,C,H,W/2+1] x [M,1,H,W/2+1]: one phase for all channels
    turned = torch.fft.rfft2(images.double()) * turn
    noise: Tensor = torch.fft.irfft2(turned, s=(height, width))
    return noise.float()


def mean_of_others(images: Tensor, excluded: Tensor) -> Tensor:
    """Return, for each victim, the mean of all images but its own.

    A mean that contains the victim would be a leak itself where there are few images.

    Args:
        images: f32[N,C,H,W].
        excluded: i64[R,p], the rows of each victim; a row may appear twice in it.

    Returns:
        f32[R,C,H,W].
    """
    weights = torch.ones(len(excluded), len(images), dtype=torch.float64)
    weights.scatter_(1, excluded, 0.0)
    weights /= weights.sum(dim=1, keepdim=True).clamp_min(1)
    # [R,N] x [N,C,H,W] -> [R,C,H,W]
    return torch.einsum("rn,nchw->rchw", weights, images.double()).float()
