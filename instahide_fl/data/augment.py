"""Augmentation of private images: random crop after padding, and mirroring.

Drawn for a whole batch at once and applied to uint8 images before normalisation and
mixing, as the authors' code does with torchvision's RandomCrop and
RandomHorizontalFlip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from instahide_fl.types import AppliedAugmentation


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What may happen to an image.

    Attributes:
        padding: black pixels added on each side before a crop of the original size.
        flip: whether half of the images are mirrored left to right.
    """

    padding: int = 0
    flip: bool = False

    def draw(self, count: int, rng: np.random.Generator) -> AppliedAugmentation:
        """Choose crop and mirroring for each of `count` images."""
        offset = rng.integers(0, 2 * self.padding + 1, size=(count, 2))
        flip = rng.integers(0, 2, size=count, dtype=np.uint8).astype(bool) & self.flip
        return AppliedAugmentation(torch.from_numpy(offset), torch.from_numpy(flip))

    def apply(self, images: Tensor, drawn: AppliedAugmentation) -> Tensor:
        """Crop and mirror.

        Args:
            images: u8[M,C,H,W].
            drawn: for the same M images, from `draw`.

        Returns:
            u8[M,C,H,W], on the device of `images`.
        """
        count, _, height, width = images.shape
        device = images.device
        offset, flip = drawn.offset.to(device), drawn.flip.to(device)
        rows = offset[:, :1] + torch.arange(height, device=device)  # (M, H)
        across = torch.arange(width, device=device).expand(count, width)
        across = torch.where(flip[:, None], width - 1 - across, across)
        columns = offset[:, 1:] + across  # (M, W)
        padded = F.pad(images, [self.padding] * 4)
        image = torch.arange(count, device=device)[:, None, None]
        # Indexing (M,1,1) x (M,H,1) x (M,1,W) with the channels last, then back.
        cropped = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]]
        return cropped.permute(0, 3, 1, 2)
