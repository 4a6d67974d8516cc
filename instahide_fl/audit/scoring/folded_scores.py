"""How well images were recovered up to the signs of their pixels.

Reconstructions and baselines go through the same comparison, the matching included: see
`metrics.folding` for the scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instahide_fl.audit.scoring.originals import Originals, uninformed_guess
from instahide_fl.audit.scoring.pairing import (
    EncodingTruth,
    FoldedPairing,
    PrivateTruth,
)
from instahide_fl.metrics.folding import fold, folded_ssim
from instahide_fl.metrics.scores import SsimScores
from instahide_fl.types import ChannelStatistics


@dataclass(frozen=True)
class FoldedImages:
    """One client's reconstructions and their baselines, without signs.

    Attributes:
        pairing: The reconstructions, held against the truth.
        noise: Draws of matched noise, held against the same truth.
        others: Draws of other private images, held against it; may be empty.
        uninformed: f64[R], guesses against the private images of the same victims.
        uninformed_encoding: f64[R], guesses against their encodings; None if no
            encodings were recovered.
    """

    pairing: FoldedPairing
    noise: Sequence[FoldedPairing]
    others: Sequence[FoldedPairing]
    uninformed: Tensor
    uninformed_encoding: Tensor | None


@dataclass(frozen=True)
class FoldedSimilarity:
    """Folded SSIM of reconstructions with one kind of truth, and of baselines.

    Attributes:
        attack: The scores of the reconstructions.
        baselines: The scores of what the attack is held against, by name.
    """

    attack: SsimScores
    baselines: Mapping[str, SsimScores]

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        baselines = {name: scores.to_json() for name, scores in self.baselines.items()}
        return {**self.attack.to_json(), "baseline": baselines}


def score_folded(
    truth: EncodingTruth | PrivateTruth,
    images: Tensor,
    noise: Sequence[Tensor],
    others: Sequence[Tensor],
    client: str,
    originals: Originals,
) -> FoldedImages:
    """Compare one client's images, and the draws of its baselines, without signs.

    Args:
        truth: What the client hid.
        images: f32[M,C,H,W], reconstructions in units of [0, 1], not clipped.
        noise: Draws of matched noise, f32[M,C,H,W] each.
        others: Draws of other private images, f32[M,C,H,W] each.
        client: The client's key.
        originals: The private images of all clients, for the guesses.
    """
    pairing = truth.pair_folded(images)
    statistics = truth.statistics
    of_encodings = None
    if isinstance(truth, EncodingTruth) and pairing.encodings is not None:
        of_encodings = _best_guess(
            plain=uninformed_guess(truth.encodings, pairing.order[:, None], statistics),
            folded=uninformed_guess(
                fold(truth.encodings, statistics), pairing.order[:, None], statistics
            ),
            candidates=pairing.encodings[:, None],
            statistics=statistics,
        )
    return FoldedImages(
        pairing=pairing,
        noise=[truth.pair_folded(draw) for draw in noise],
        others=[truth.pair_folded(draw) for draw in others],
        uninformed=_best_guess(
            plain=originals.mean_of_others(client, pairing.components),
            folded=originals.folded.mean_of_others(client, pairing.components),
            candidates=pairing.candidates,
            statistics=statistics,
        ),
        uninformed_encoding=of_encodings,
    )


def private_folded(scored: Sequence[FoldedImages]) -> FoldedSimilarity | None:
    """Sum up clients' folded SSIM with private images; None without clients."""
    if not scored:
        return None
    baselines = {
        "no_information": [images.uninformed for images in scored],
        "matched_noise": [draw.private for images in scored for draw in images.noise],
        "other_images": [draw.private for images in scored for draw in images.others],
    }
    return _similarity([images.pairing.private for images in scored], baselines)


def encoding_folded(scored: Sequence[FoldedImages]) -> FoldedSimilarity | None:
    """Sum up clients' folded SSIM with encodings; None if none were recovered."""
    attack = _present(images.pairing.encoding for images in scored)
    if not attack:
        return None
    noise = (draw.encoding for images in scored for draw in images.noise)
    baselines = {
        "no_information": _present(images.uninformed_encoding for images in scored),
        "matched_noise": _present(noise),
    }
    return _similarity(attack, baselines)


def _similarity(
    attack: Sequence[Tensor], baselines: Mapping[str, Sequence[Tensor]]
) -> FoldedSimilarity:
    return FoldedSimilarity(
        SsimScores.of(torch.cat(list(attack))),
        {
            name: SsimScores.of(torch.cat(list(values)))
            for name, values in baselines.items()
            if values
        },
    )


def _present(values: Iterable[Tensor | None]) -> list[Tensor]:
    return [value for value in values if value is not None]


def _best_guess(
    plain: Tensor,
    folded: Tensor,
    candidates: Tensor,
    statistics: ChannelStatistics,
) -> Tensor:
    """Return f64[R], the better of the mean image and the mean of folded images."""
    return torch.maximum(
        folded_ssim(plain, candidates, statistics),
        folded_ssim(folded, candidates, statistics),
    )
