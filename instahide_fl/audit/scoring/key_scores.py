"""Scoring the keys that an attack recovered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instahide_fl.attacks.base import Reconstruction
from instahide_fl.transcript.truth import Truths
from instahide_fl.types import EncodingKey


@dataclass(frozen=True)
class KeyCounts:
    """How many encodings an attack has the key of.

    Attributes:
        correct: The encodings whose key is right in every part: images, coefficients,
            mask, crops and flips.
        named: The encodings that the attack gave a key for.
        count: The encodings that it looked at.
    """

    correct: int
    named: int
    count: int

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        return {"found": self.correct, "named": self.named, "count": self.count}


def score_keys(reconstruction: Reconstruction, truths: Truths) -> KeyCounts | None:
    """Count the encodings whose key was recovered.

    Args:
        reconstruction: What the attack returned.
        truths: The truth of each client in each recorded round.

    Returns:
        The counts; None if the attack looks for no keys.
    """
    if reconstruction.keys is None:
        return None
    correct, named = 0, 0
    for round_and_client, key in reconstruction.keys.items():
        named += len(key)
        true_key = truths[round_and_client].key
        if len(true_key) == len(key):
            correct += int(_equal(key, true_key).sum())
    return KeyCounts(correct, named, sum(len(truth.key) for truth in truths.values()))


def _equal(key: EncodingKey, true_key: EncodingKey) -> Tensor:
    """Return which encodings have the same key, bool[E]."""
    equal = torch.ones(len(key), dtype=torch.bool)
    for part, true_part in zip(_parts(key), _parts(true_key), strict=True):
        if part.shape == true_part.shape:
            equal &= (part == true_part).all(dim=1)
        else:
            equal &= False
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
