"""Small pictures on disk, and challenges made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from instahide_fl.data.pool import MixingPool

SIDE = 12


def pictures(rng, count, channels=3):
    """Blurred noise u8[N,C,H,W]: as in photographs, neighbours and channels correlate.

    Dark values are commoner than bright ones, so that a picture is not its negative.
    """
    noise = rng.standard_normal((count, channels, SIDE, SIDE))
    noise = gaussian_filter(noise + 2 * noise[:, :1], (0, 0, 2, 2))
    noise /= 4 * noise.std((1, 2, 3), keepdims=True)
    return ((noise + 0.5).clip(0, 1) ** 2 * 255).round().astype(np.uint8)


def write_pictures(folder: Path, rng, classes=5, test=8):
    """Write a data set for imagefolder: with few training and more test images."""
    for part, count in (("train", 2), ("test", test)):
        for number in range(classes):
            place = folder / part / f"class-{number}"
            place.mkdir(parents=True)
            for row, image in enumerate(pictures(rng, count)):
                Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{row}.png")
    return f"imagefolder:{folder}"


def write_pool(folder: Path, rng, count=200):
    """Write a pool of as small pictures."""
    MixingPool.from_images(torch.from_numpy(pictures(rng, count))).save(folder)
    return str(folder)
