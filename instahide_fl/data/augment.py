"""Augmentation of private images: random crop after padding, and mirroring.

It is drawn for a whole batch at once and applied to uint8 images before normalisation
and mixing, as InstaHide's authors do with torchvision's RandomCrop and
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
    """The crops and flips that private images may go through.

    Attributes:
        padding: Number of black pixels added on each side before a crop of the original
            size.
        flip: Whether half of the images are mirrored left to right.
    """

    padding: int = 0
    flip: bool = False

    def draw(self, count: int, rng: np.random.Generator) -> AppliedAugmentation:
        """Draw a crop and a flip for each of `count` images."""
        offset = rng.integers(0, 2 * self.padding + 1, size=(count, 2))
        flip = rng.integers(0, 2, size=count, dtype=np.uint8).astype(bool) & self.flip
        return AppliedAugmentation(torch.from_numpy(offset), torch.from_numpy(flip))

    def apply(self, images: Tensor, drawn: AppliedAugmentation) -> Tensor:
        """Crop and flip images.

        Args:
            images: u8[M,C,H,W].
            drawn: The crops and flips that `draw` gave for M images.

        Returns:
            u8[M,C,H,W], on the device of `images`.
        """
        count, _, height, width = images.shape
        device = images.device
        offset, flip = drawn.offset.to(device), drawn.flip.to(device)
        # Each image's own rows and columns of its padded version.
        rows = offset[:, :1] + torch.arange(height, device=device)  # [M,H]
        across = torch.arange(width, device=device).expand(count, width)
        across = torch.where(flip[:, None], width - 1 - across, across)
        columns = offset[:, 1:] + across  # [M,W]
        padded = F.pad(images, [self.padding] * 4)
        image = torch.arange(count, device=device)[:, None, None]
        # Channels last, [M,C,H',W'] -> [M,H',W',C]; indexed by [M,1,1], [M,H,1] and
        # [M,1,W] this gives [M,H,W,C], which goes back to [M,C,H,W].
        cropped = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]]
        return cropped.permute(0, 3, 1, 2)
