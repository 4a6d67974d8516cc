"""What soft labels say of encodings: classes and coefficients."""

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
class Slots:
    """Encodings of one client, taken apart by the classes in their labels.

    Two images of one class share a slot, with the sum of their coefficients.

    Attributes:
        images: f32[E,C,H,W], normalised.
        soft_targets: f32[E,K].
        private: p, private images in each encoding.
        encodings: i64[S], ascending.
        classes: i64[S].
    """

    images: Tensor
    soft_targets: Tensor
    private: int
    encodings: Tensor
    classes: Tensor

    @classmethod
    def of(cls, images: Tensor, soft_targets: Tensor, private: int) -> Slots:
        """Find the slots.

        Args:
            images: f32[E,C,H,W], normalised.
            soft_targets: f32[E,K].
            private: p.

        Raises:
            AttackError: a label names no class, or more than p.
        """
        present = soft_targets > MIN_COEFFICIENT
        found = present.sum(1)
        if bool((found < 1).any()) or int(found.max()) > private:
            worst = int(found.max()) if int(found.max()) > private else 0
            raise AttackError(
                f"the soft label of an encoding of {private} private images names 1 to "
                f"{private} classes, one here names {worst}: these are not labels of "
                f"encodings, or labels were smoothed"
            )
        encodings, classes = present.nonzero(as_tuple=True)
        return cls(images, soft_targets, private, encodings, classes)

    def __len__(self) -> int:
        return len(self.encodings)

    @cached_property
    def coefficients(self) -> Tensor:
        """f32[S]: of the image of each slot, or of all its images together."""
        return self.soft_targets[self.encodings, self.classes]

    @cached_property
    def private_coefficients(self) -> Tensor:
        """f32[E,p]: as labels tell; where images share a class, equal shares."""
        largest = self.soft_targets.topk(self.private, dim=1).values
        # The largest sum is that of the images whose class is named only once.
        repeated = self.private - self.per_encoding
        share = largest[:, 0] / (repeated + 1)
        place = torch.arange(self.private)
        split = (place == 0) | (place >= self.per_encoding[:, None])
        return torch.where(split, share[:, None], largest)

    @cached_property
    def per_encoding(self) -> Tensor:
        """i64[E]: slots of each encoding, 1..p."""
        return torch.bincount(self.encodings, minlength=len(self.images))

    @cached_property
    def clear(self) -> Tensor:
        """i64[M,p]: the slots of encodings whose p images have p classes.

        Only there do labels tell the coefficient of each image.
        """
        clear = self.per_encoding[self.encodings] == self.private
        return clear.nonzero()[:, 0].view(-1, self.private)

    def images_of_each_class(self, count: int) -> Tensor:
        """Divide n images among the classes, i64[K], by how often a class is named.

        Args:
            count: n.
        """
        share = self.coefficients / self.soft_targets.sum(1)[self.encodings]
        missing = self.private - self.per_encoding[self.encodings]
        named = torch.zeros(self.soft_targets.shape[1], dtype=torch.float64)
        named.index_add_(0, self.classes, 1 + (missing * share).double())
        return torch.from_numpy(_apportioned(count, named.numpy()))


def _apportioned(count: int, named: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return whole numbers in proportion to `named` that sum to `count`.

    A class that is named has at least one image. Largest remainders.
    """
    exact = count * named / named.sum()
    whole: NDArray[np.int64] = np.maximum(exact.astype(np.int64), named > 0)
    remainder = exact - whole
    for _ in range(max(0, count - int(whole.sum()))):
        chosen = int(remainder.argmax())
        whole[chosen] += 1
        remainder[chosen] -= 1
    return whole
