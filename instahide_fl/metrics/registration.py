"""Similarity to the best of an original's neighbours: mirrored, or shifted a little.

Where an attack cannot know how an image lay before it was cropped and mirrored, a copy
in another position is as much of a leak. The best of many positions lifts the
similarity of anything, so baselines must be scored in the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instahide_fl.metrics.similarity import ssim

MAX_SHIFT = 4  # pixels in each direction


def registered_ssim(
    images: Tensor, originals: Tensor, max_shift: int = MAX_SHIFT
) -> Tensor:
    """Return the SSIM of each image in its best position.

    Positions are all shifts by up to `max_shift` pixels, edges repeated, plain and
    mirrored left to right.

    Args:
        images: f32[R,C,H,W] in [0, 1].
        originals: f32[R,C,H,W] in [0, 1].
        max_shift: The largest shift in pixels; 0 tries mirroring alone.

    Returns:
        f64[R].
    """
    height, width = images.shape[2:]
    best = ssim(images, originals)
    for turned in (images, images.flip(3)):
        padded = torch.nn.functional.pad(turned, [max_shift] * 4, mode="replicate")
        for row in range(2 * max_shift + 1):
            for column in range(2 * max_shift + 1):
                shifted = padded[:, :, row : row + height, column : column + width]
                best = torch.maximum(best, ssim(shifted, originals))
    return best
