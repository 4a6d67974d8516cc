"""Scoring guessed signs, and the mixtures that they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from instahide_fl.attacks.base import Reconstruction, Recovered
from instahide_fl.audit.scoring.originals import truths_of
from instahide_fl.errors import ShapeError
from instahide_fl.transcript.truth import ClientTruth

MARGIN = 0.1
"""Share of right signs above that of the best constant guess, at least."""


@dataclass(frozen=True)
class SignScores:
    """How many signs of mixtures were right.

    Every figure is of the better of a guess and its negative, encoding by encoding: a
    mixture and its negative have the same absolute values.

    Attributes:
        right: f64[E], share of a mixture's pixels.
        weighted: f64[E], each pixel counted by its absolute value.
        constant: f64[E], what guessing one sign for all pixels reaches.
        constant_weighted: f64[E], the same, each pixel counted by its absolute value.
    """

    right: Tensor
    weighted: Tensor
    constant: Tensor
    constant_weighted: Tensor

    @classmethod
    def of(cls, guessed: Tensor, mixed: Tensor) -> SignScores:
        """Compare.

        Args:
            guessed: f32[E,C,H,W], with guessed signs.
            mixed: f32[E,C,H,W], with the true ones.
        """
        agree = ((guessed >= 0) == (mixed >= 0)).double().flatten(1)
        weight = mixed.abs().double().flatten(1)
        weight = weight / weight.sum(dim=1, keepdim=True).clamp_min(1e-12)
        positive = (mixed >= 0).double().flatten(1)
        return cls(
            _better(agree.mean(dim=1)),
            _better((agree * weight).sum(dim=1)),
            _better(positive.mean(dim=1)),
            _better((positive * weight).sum(dim=1)),
        )

    def __add__(self, other: SignScores) -> SignScores:
        return SignScores(
            torch.cat([self.right, other.right]),
            torch.cat([self.weighted, other.weighted]),
            torch.cat([self.constant, other.constant]),
            torch.cat([self.constant_weighted, other.constant_weighted]),
        )

    @property
    def beats_chance(self) -> bool:
        """Whether clearly more signs are right than a constant guess gets."""
        return float(self.right.mean()) >= float(self.constant.mean()) + MARGIN

    def to_json(self) -> dict[str, Any]:
        """Return it as it is written into an attack's file."""
        return {
            "encodings": len(self.right),
            "right": {
                "mean": float(self.right.mean()),
                "best": float(self.right.max()),
                "chance": 0.5,
                "constant_guess": float(self.constant.mean()),
            },
            "right_weighted_by_magnitude": {
                "mean": float(self.weighted.mean()),
                "constant_guess": float(self.constant_weighted.mean()),
            },
        }


def score_signs(
    reconstruction: Reconstruction, truths: Mapping[tuple[int, str], ClientTruth]
) -> SignScores | None:
    """Hold mixtures against those behind the masks; None where none were recovered.

    Raises:
        TranscriptError: the truth of a client is missing.
        ShapeError: the mixtures do not fit the encodings.
    """
    total: SignScores | None = None
    if reconstruction.target != "mixture":
        return None
    for recovered in reconstruction.recovered:
        if recovered.images is None or not len(recovered.images):
            continue
        known = [unmasked(one) for one in truths_of(recovered, truths)]
        mixed = torch.cat([one.encodings for one in known])[recovered_rows(recovered)]
        if mixed.shape != recovered.images.shape:
            raise ShapeError(
                f"mixtures of client {recovered.client} must be {tuple(mixed.shape)}, "
                f"got {tuple(recovered.images.shape)}"
            )
        own = SignScores.of(recovered.images, mixed)
        total = own if total is None else total + own
    return total


def recovered_rows(recovered: Recovered) -> Tensor:
    """Return i64[M], the encodings that mixtures are of: all in order if not named."""
    if recovered.rows is not None:
        return recovered.rows
    return torch.arange(0 if recovered.images is None else len(recovered.images))


def unmasked(truth: ClientTruth) -> ClientTruth:
    """Return a truth whose encodings have the signs of before the mask."""
    return replace(truth, encodings=truth.encodings * truth.key.signs)


def _better(share: Tensor) -> Tensor:
    return torch.maximum(share, 1 - share)
