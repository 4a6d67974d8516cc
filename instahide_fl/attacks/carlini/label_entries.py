"""What soft labels tell of encodings: classes and coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.errors import AttackError

MIN_COEFFICIENT = 1e-6  # of a class that counts as present


@dataclass(frozen=True)
class LabelEntries:
    """The entries of the soft labels of one client's encodings, one per class named.

    An entry stands for one private image of its encoding. Two images of one class
    share an entry, which then holds the sum of their coefficients.

    Attributes:
        images: f32[E,C,H,W], the encodings, normalised.
        soft_targets: f32[E,K], their soft labels.
        num_private: The number p of private images in each encoding.
        encodings: i64[L], the encoding of each entry, ascending.
        classes: i64[L], the class of each entry.
    """

    images: Tensor
    soft_targets: Tensor
    num_private: int
    encodings: Tensor
    classes: Tensor

    @classmethod
    def of(cls, images: Tensor, soft_targets: Tensor, num_private: int) -> LabelEntries:
        """Find the entries of soft labels.

        Args:
            images: f32[E,C,H,W], normalised.
            soft_targets: f32[E,K].
            num_private: The number p of private images in each encoding.

        Raises:
            AttackError: A label names no class, or more than p.
        """
        present = soft_targets > MIN_COEFFICIENT
        named = present.sum(1)
        if bool((named < 1).any()) or int(named.max()) > num_private:
            worst = int(named.max()) if int(named.max()) > num_private else 0
            raise AttackError(
                f"the soft label of an encoding of {num_private} private images names "
                f"1 to {num_private} classes, one here names {worst}: these are not "
                f"labels of encodings, or labels were smoothed"
            )
        encodings, classes = present.nonzero(as_tuple=True)
        return cls(images, soft_targets, num_private, encodings, classes)

    def __len__(self) -> int:
        return len(self.encodings)

    @cached_property
    def coefficients(self) -> Tensor:
        """f32[L]: the coefficient of each entry's image, or the sum of its images'."""
        return self.soft_targets[self.encodings, self.classes]

    @cached_property
    def private_coefficients(self) -> Tensor:
        """f32[E,p]: coefficients of private images, as far as labels tell.

        Images that share a class are given equal parts of its entry.
        """
        largest = self.soft_targets.topk(self.num_private, dim=1).values
        # Which entry is shared is unknown: the largest is taken to be the one, so that
        # all classes that are missing are images of it.
        repeated = self.num_private - self.per_encoding
        share = largest[:, 0] / (repeated + 1)
        rank = torch.arange(self.num_private)
        split = (rank == 0) | (rank >= self.per_encoding[:, None])  # [p] -> [E,p]
        return torch.where(split, share[:, None], largest)

    @cached_property
    def per_encoding(self) -> Tensor:
        """i64[E]: the number of entries of each encoding, 1..p."""
        return torch.bincount(self.encodings, minlength=len(self.images))

    @cached_property
    def unshared(self) -> Tensor:
        """i64[M,p]: the entries of the M encodings whose p images have p classes.

        Only there do labels tell the coefficient of each image.
        """
        unshared = self.per_encoding[self.encodings] == self.num_private
        # Entries are sorted by encoding: each run of p belongs to one. [M*p] -> [M,p]
        return unshared.nonzero()[:, 0].view(-1, self.num_private)

    def images_of_each_class(self, count: int) -> Tensor:
        """Divide n images among the classes by how often a class is named.

        Args:
            count: The number n of images.

        Returns:
            i64[K], which sums to n.
        """
        share = self.coefficients / self.soft_targets.sum(1)[self.encodings]
        missing = self.num_private - self.per_encoding[self.encodings]
        named = torch.zeros(self.soft_targets.shape[1], dtype=torch.float64)
        named.index_add_(0, self.classes, 1 + (missing * share).double())
        return torch.from_numpy(_apportioned(count, named.numpy()))


def _apportioned(count: int, named: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return whole numbers in proportion to `named` that sum to `count`.

    The method of largest remainders; a class that is named has at least one image.
    """
    exact = count * named / named.sum()
    seats: NDArray[np.int64] = np.maximum(exact.astype(np.int64), named > 0)
    remainder = exact - seats
    for _ in range(max(0, count - int(seats.sum()))):
        chosen = int(remainder.argmax())
        seats[chosen] += 1
        remainder[chosen] -= 1
    return seats
