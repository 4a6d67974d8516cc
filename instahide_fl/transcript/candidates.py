"""The images that a membership attack is asked about."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CandidateImages:
    """Members of the training set and images that were held out, in random order.

    Nothing here says which are which. They belong to the question that an adversary
    asks, not to what it knows, so every adversary has them.

    Attributes:
        images: u8[N,C,H,W].
        targets: i64[N], their classes.
    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> CandidateImages:
        """Return the first candidates, all if there are not as many."""
        return CandidateImages(self.images[:count], self.targets[:count])
