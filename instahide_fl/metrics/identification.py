"""Whether a reconstruction points at the right image among a client's own.

After "image identification precision" (Yin et al., "See through Gradients", CVPR 2021):
the nearest neighbour of a reconstruction, among images of the same class, is the true
one or is not. A shift of colours that lowers SSIM hardly matters to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Identification:
    """How many reconstructions point at their image.

    Attributes:
        hits: The number of reconstructions whose nearest neighbour is a true component.
        chance: The number of hits that neighbours drawn at random have, on average.
        count: The number of reconstructions with at least one wrong image to choose
            from.
    """

    hits: int = 0
    chance: float = 0.0
    count: int = 0

    def __add__(self, other: Identification) -> Identification:
        return Identification(
            self.hits + other.hits,
            self.chance + other.chance,
            self.count + other.count,
        )

    @property
    def precision(self) -> float:
        """The share of hits; 0 if there was nothing to choose from."""
        return self.hits / self.count if self.count else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        if not self.count:
            return {"absent": "no client has another image of the same class"}
        return {
            "precision": self.precision,
            "chance": self.chance / self.count,
            "count": self.count,
        }


def identify(similarity: Tensor, components: Tensor, targets: Tensor) -> Identification:
    """Count reconstructions whose nearest neighbour is a true component.

    Args:
        similarity: f64[R,n], the similarity of each reconstruction to each private
            image of the client.
        components: i64[R,p], the true images of each reconstruction.
        targets: i64[n], the classes of the private images; neighbours are sought among
            the images of the components' classes.
    """
    true = torch.zeros_like(similarity, dtype=torch.bool)
    true.scatter_(1, components, True)
    true_classes = targets[components]  # [R,p]
    # [1,n,1] == [R,1,p] -> [R,n]: images of a class that the reconstruction may have
    allowed = (targets[None, :, None] == true_classes[:, None, :]).any(dim=2)
    nearest = similarity.masked_fill(~allowed, -torch.inf).argmax(dim=1, keepdim=True)
    choices, right = allowed.sum(dim=1), true.sum(dim=1)
    undecided = choices > right
    hit = true.gather(1, nearest)[:, 0]
    return Identification(
        hits=int(hit[undecided].sum()),
        chance=float((right / choices)[undecided].double().sum()),
        count=int(undecided.sum()),
    )
