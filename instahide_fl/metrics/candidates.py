"""Ranking the true image of a reconstruction among images that nobody trained on.

Whether a reconstruction identifies an image is a question of its own: with a low SSIM
it may still resemble the true image more than any other of thousands. Similarity is the
correlation of all pixels, in two ways:

- "raw": normalised pixels, in the better of both signs.
- "folded": F(x) = |(x - mean) / deviation|, which InstaHide's signs leave alone. The
  reconstruction may have any signs, or be an image of absolute values up to scale and
  offset, or the negative of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.types import ChannelStatistics, PrivateSplit

Distance: TypeAlias = Literal["raw", "folded"]
DISTANCES: tuple[Distance, ...] = ("raw", "folded")
SIZES = (100, 1000, 10_000)
"""Numbers N of candidates, the true image included."""
MAX_VALUES = 2**23  # of candidates held at once in single precision, 32 MB
TIE = 1e-6  # by which rounding may lower the similarity of an equal image


@dataclass(frozen=True)
class Candidates:
    """Real images that no client trained on, in random order.

    Attributes:
        splits: The images, which may be mapped from disk.
        order: i64[M], rows of the splits put below each other; more than are ever
            looked at are left out.
        num_images: The number of images that there are.
        statistics: Constants that images are normalised with.
    """

    splits: Sequence[PrivateSplit]
    order: Tensor
    num_images: int
    statistics: ChannelStatistics

    @classmethod
    def of(
        cls,
        splits: Sequence[PrivateSplit],
        order: NDArray[np.int64],
        statistics: ChannelStatistics,
    ) -> Candidates:
        """Take as many images as the largest N needs.

        Args:
            splits: The images.
            order: i64[n], a random order of the rows of all splits.
            statistics: Constants that images are normalised with.
        """
        first = torch.from_numpy(order[: SIZES[-1] - 1].copy())
        return cls(splits, first, len(order), statistics)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers N of candidates that there are enough images for."""
        return tuple(size for size in SIZES if size - 1 <= len(self))

    @cached_property
    def targets(self) -> Tensor:
        """i64[M], the classes of the images in their order."""
        parts = [
            split.targets[split.image_rows(torch.arange(len(split)))]
            for split in self.splits
        ]
        return torch.cat(parts)[self.order]

    def normalised(self, start: int, stop: int) -> Tensor:
        """Return the images start..stop-1 in their order, f32[n,C,H,W], normalised."""
        return self.statistics.normalise(self.pixels(start, stop))

    def pixels(self, start: int, stop: int) -> Tensor:
        """Return the images start..stop-1 in their order, u8[n,C,H,W]."""
        rows, offset = self.order[start:stop], 0
        shape = self.splits[0].images.shape[1:]
        pixels = torch.empty(len(rows), *shape, dtype=torch.uint8)
        for split in self.splits:
            inside = (rows >= offset) & (rows < offset + len(split))
            pixels[inside] = split.images[split.image_rows(rows[inside] - offset)]
            offset += len(split)
        return pixels

    def chunks(self, values: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of candidates that none of `sizes` lies inside of.

        Args:
            values: The number of values of an image.
        """
        step, start = max(1, MAX_VALUES // values), 0
        for size in self.sizes:
            while start < size - 1:
                stop = min(start + step, size - 1)
                yield start, stop
                start = stop

    def of_classes(self, classes: Tensor) -> Tensor:
        """Count candidates of the classes of each true image.

        Args:
            classes: i64[R,p].

        Returns:
            i64[R,S], among the first N - 1 candidates, for each of the S sizes.
        """
        counts = []
        for size in self.sizes:
            others = self.targets[: size - 1]
            # [N-1,1,1] == [R,p] -> [R]
            counts.append((others[:, None, None] == classes).any(dim=2).sum(dim=0))
        return torch.stack(counts, dim=1)


def ranks_among(
    images: Tensor, originals: Tensor, candidates: Candidates, distance: Distance
) -> Tensor:
    """Return how many candidates resemble each reconstruction as much as the truth.

    Equal similarity counts against the reconstruction: what resembles all images alike
    identifies none.

    Args:
        images: f32[R,C,H,W], reconstructions, normalised.
        originals: f32[R,p,C,H,W], the true images of each, normalised; the one that it
            resembles most counts.
        candidates: The other images.
        distance: How images are compared.

    Returns:
        i64[R,S] in 0..N-1, for each of the S sizes N; 0 says that the true image is
        the nearest of N.
    """
    readings = _readings(images, distance)  # [Q,R,d]
    true = _unit(_shown(originals, distance), first=2)  # [R,p,d]
    best = torch.einsum("qrd,rpd->qrp", readings, true).amax(dim=(0, 2)) - TIE
    as_similar = torch.zeros(len(images), dtype=torch.int64)
    ranks = []
    for start, stop in candidates.chunks(images[0].numel()):
        others = _unit(_shown(candidates.normalised(start, stop), distance))
        similarity = (readings @ others.T).amax(dim=0)  # [Q,R,n] -> [R,n]
        as_similar = as_similar + (similarity >= best[:, None]).sum(dim=1)
        if stop + 1 in candidates.sizes:
            ranks.append(as_similar)
    return torch.stack(ranks, dim=1)


def chance_of_rank(below: int, others: Tensor, choices: Tensor) -> Tensor:
    """Return how often a random order puts the true image among the first.

    Where the scorer chose the most similar of several images of the client, the best of
    them has to be beaten: all are equally likely to come first.

    Args:
        below: t; the true image is among the first t if fewer than t others precede it.
        others: i64[R], the number of wrong images.
        choices: i64[R], the number of images that the true one was chosen from, at
            least one.

    Returns:
        f64[R] in [0, 1].
    """
    missed = torch.ones(len(others), dtype=torch.float64)
    for position in range(below):
        remaining = (others - position).clamp_min(0)
        missed = missed * remaining / (remaining + choices)
    return 1 - missed


def _shown(images: Tensor, distance: Distance) -> Tensor:
    """Return what an image shows of itself."""
    return images.abs() if distance == "folded" else images


def _readings(images: Tensor, distance: Distance) -> Tensor:
    """Return f32[Q,R,C*H*W], the ways to read each reconstruction."""
    plain = _unit(images)
    ways = [plain, -plain]
    if distance == "folded":
        ways.append(_unit(images.abs()))
    return torch.stack(ways)


def _unit(images: Tensor, first: int = 1) -> Tensor:
    """Flatten, centre and scale to length 1; a constant image becomes 0."""
    flat = images.flatten(first)  # [...,C,H,W] -> [...,C*H*W]
    centred = flat - flat.mean(dim=-1, keepdim=True)
    length = centred.norm(dim=-1, keepdim=True)
    return torch.where(length > TIE, centred / length.clamp_min(TIE), 0.0)
