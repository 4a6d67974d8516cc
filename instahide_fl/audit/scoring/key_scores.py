"""Scoring keys that an attack found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instahide_fl.attacks.base import Reconstruction
from instahide_fl.transcript.truth import ClientTruth
from instahide_fl.types import EncodingKey


@dataclass(frozen=True)
class FoundKeys:
    """Keys against the truth.

    Attributes:
        found: encodings whose key is right in every part: images, coefficients, mask,
            crops and flips.
        named: encodings that the attack gave a key for.
        count: encodings that it looked at.
    """

    found: int
    named: int
    count: int

    def to_json(self) -> dict[str, Any]:
        """Return it as it is written into an attack's file."""
        return {"found": self.found, "named": self.named, "count": self.count}


def score_keys(
    reconstruction: Reconstruction, truths: Mapping[tuple[int, str], ClientTruth]
) -> FoundKeys | None:
    """Count the encodings whose key was found.

    Args:
        reconstruction: of the attack.
        truths: by round and client.

    Returns:
        None if the attack looks for no keys.
    """
    if reconstruction.keys is None:
        return None
    found, named = 0, 0
    for place, key in reconstruction.keys.items():
        named += len(key)
        truth = truths[place].key
        if len(truth) == len(key):
            found += int(_equal(key, truth).sum())
    return FoundKeys(found, named, sum(len(truth.key) for truth in truths.values()))


def _equal(key: EncodingKey, truth: EncodingKey) -> Tensor:
    """Return which encodings have the same key, bool[E]."""
    equal = torch.ones(len(key), dtype=torch.bool)
    for one, other in zip(_parts(key), _parts(truth), strict=True):
        equal &= (one == other).all(dim=1) if one.shape == other.shape else False
    return equal


def _parts(key: EncodingKey) -> list[Tensor]:
    """Return all parts of a key, each with a row for an encoding."""
    count, drawn = len(key), key.augmentation
    nothing = torch.empty(count, 0)
    return [
        key.coefficients,
        key.private_index,
        key.public_index,
        nothing if key.sign_bits is None else key.sign_bits,
        nothing if drawn is None else drawn.offset.reshape(count, -1),
        nothing if drawn is None else drawn.flip.reshape(count, -1),
    ]
