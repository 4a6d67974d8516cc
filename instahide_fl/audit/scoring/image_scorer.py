"""Scoring the images recovered of one client, and their baselines, against its truth.

Baselines are scored for the same victims by the same rules: noise that is as smooth as
the reconstructions, images of others, and a guess from what such images look like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import Recovered, Target
from instahide_fl.audit.scoring.candidate_scores import PairedImages
from instahide_fl.audit.scoring.folded_scores import FoldedImages, score_folded
from instahide_fl.audit.scoring.ground_truth import GroundTruth, RecoveredClient
from instahide_fl.audit.scoring.originals import ClientImages, uninformed_guess
from instahide_fl.audit.scoring.pairing import (
    EncodingTruth,
    FoldedPairing,
    Pairing,
    PrivateTruth,
)
from instahide_fl.audit.scoring.shown_images import ShownImages, align_shown
from instahide_fl.errors import ShapeError
from instahide_fl.metrics.baselines import matched_noise
from instahide_fl.metrics.candidates import Distance
from instahide_fl.metrics.comparison import Comparer, Comparison
from instahide_fl.types import ChannelStatistics

MAX_NOISE_DRAWS = 5
MAX_OTHER_DRAWS = 20  # how alike two images are by chance varies more
MAX_PAIRS = 50_000  # compared for a client and baseline, to bound the time


@dataclass(frozen=True)
class ScoredImages:
    """One client's reconstructions and their baselines.

    Attributes:
        count: The number of reconstructions.
        pairing: The reconstructions, held against the truth.
        noise: Draws of matched noise, held against the same truth.
        others: Draws of other private images, held against it; may be empty.
        uninformed: Guesses, against the private images of the same victims.
        uninformed_encoding: Guesses, against their encodings; None if no encodings were
            recovered.
        in_better_sign: f32[R,C,H,W], reconstructions in their better sign, clipped.
        guess: f32[R,C,H,W] in [0, 1], what is guessed without any attack.
        shown: The images to draw.
        folded: The same without signs of pixels.
        paired: The reconstructions as they are paired for each distance, to be ranked.
    """

    count: int
    pairing: Pairing
    noise: Sequence[Pairing]
    others: Sequence[Pairing]
    uninformed: Comparison
    uninformed_encoding: Comparison | None
    in_better_sign: Tensor
    guess: Tensor
    shown: ShownImages
    folded: FoldedImages
    paired: Mapping[Distance, PairedImages]


@dataclass(frozen=True)
class ImageScorer:
    """Scores recovered images, client by client.

    Attributes:
        target: What the attack recovered.
        ground_truth: What the clients hid.
        rng: The generator that draws the baselines.
    """

    target: Target
    ground_truth: GroundTruth
    rng: np.random.Generator

    def score(self, client: RecoveredClient) -> ScoredImages:
        """Score one client's images, at least one, and their baselines.

        Raises:
            ShapeError: images or rows do not fit the truth.
        """
        recovered, statistics = client.recovered, self.ground_truth.statistics
        truth = self._truth(client)
        normalised = _checked(recovered, truth.client_images.images)
        images = statistics.restore(normalised)
        pairing = truth.pair(images)
        max_draws = max(1, MAX_PAIRS // (len(images) * len(truth)))
        noise = [
            matched_noise(images, self.rng)
            for _ in range(min(MAX_NOISE_DRAWS, max_draws))
        ]
        draws = min(MAX_OTHER_DRAWS, max_draws)
        others = list(self._drawn_others(recovered.client, len(images), draws))
        originals = self.ground_truth.originals
        guess = originals.mean_of_others(recovered.client, pairing.components)
        clipped = Comparer(statistics, clip=True)
        folded = score_folded(
            truth=truth,
            images=images,
            noise=noise,
            others=others,
            client=recovered.client,
            originals=originals,
        )
        return ScoredImages(
            count=len(images),
            pairing=pairing,
            noise=[truth.pair(draw) for draw in noise],
            others=[truth.pair(draw) for draw in others],
            uninformed=clipped.compare(guess, pairing.candidates),
            uninformed_encoding=_uninformed_encoding(truth, pairing, statistics),
            in_better_sign=_in_better_sign(images, pairing, clipped),
            guess=clipped.to_display_units(guess),
            shown=align_shown(recovered.client, images, pairing, statistics),
            folded=folded,
            paired={
                "raw": _paired(recovered.client, truth, normalised, pairing),
                "folded": _paired(recovered.client, truth, normalised, folded.pairing),
            },
        )

    def _drawn_others(self, client: str, count: int, draws: int) -> Iterator[Tensor]:
        """Yield f32[count,C,H,W] in [0, 1], `draws` times; nothing without images."""
        others = self.ground_truth.originals.not_of(client)
        for _ in range(draws if len(others) else 0):
            too_few = len(others) < count
            rows = self.rng.choice(len(others), count, replace=too_few)
            yield others[torch.from_numpy(rows)]

    def _truth(self, client: RecoveredClient) -> EncodingTruth | PrivateTruth:
        recovered, ground_truth = client.recovered, self.ground_truth
        statistics = ground_truth.statistics
        client_images = ground_truth.originals.clients[recovered.client]
        if self.target == "encoding":
            return EncodingTruth.of(
                truths=client.truths,
                client_images=client_images,
                statistics=statistics,
                augmentation=ground_truth.augmentation,
                by_absolute_values=ground_truth.sign_invariant,
            )
        _check_rows(recovered, client_images)
        # An image may come back from any round that mixed it.
        every_round = ground_truth.of_client(recovered.client)
        return PrivateTruth.of(every_round, client_images, statistics, recovered.rows)


def _paired(
    client: str,
    truth: EncodingTruth | PrivateTruth,
    images: Tensor,
    pairing: Pairing | FoldedPairing,
) -> PairedImages:
    return PairedImages(
        client=client,
        images=images[pairing.index],
        client_images=truth.client_images,
        components=pairing.components,
        choices=truth.num_choices,
    )


def _in_better_sign(images: Tensor, pairing: Pairing, clipped: Comparer) -> Tensor:
    """Return f32[R,C,H,W] in [0, 1], each in the sign that resembles its truth."""
    paired = images[pairing.index]
    flipped = pairing.private.flipped[:, None, None, None]  # [R] -> [R,1,1,1]
    return torch.where(
        flipped, clipped.opposite(paired), clipped.to_display_units(paired)
    )


def _checked(recovered: Recovered, originals: Tensor) -> Tensor:
    """Return the images, f32[M,C,H,W]; what is not finite becomes the mean colour."""
    images = recovered.images
    if images is None or images.shape[1:] != originals.shape[1:]:
        got = None if images is None else tuple(images.shape)
        raise ShapeError(
            f"reconstructions of client {recovered.client} must be [M, "
            f"{', '.join(map(str, originals.shape[1:]))}], got {got}"
        )
    return images.detach().cpu().float().nan_to_num(0.0, 0.0, 0.0)


def _check_rows(recovered: Recovered, client_images: ClientImages) -> None:
    rows, images = recovered.rows, recovered.images
    if rows is None or images is None:
        return
    recorded = torch.isin(rows, client_images.rows)
    if rows.shape != images.shape[:1] or not bool(recorded.all()):
        raise ShapeError(
            f"rows of client {recovered.client} must name one recorded image for each "
            f"of the {len(images)} reconstructions, got {rows.tolist()[:10]}"
        )


def _uninformed_encoding(
    truth: EncodingTruth | PrivateTruth, pairing: Pairing, statistics: ChannelStatistics
) -> Comparison | None:
    if isinstance(truth, PrivateTruth):
        return None
    guess = uninformed_guess(truth.encodings, pairing.order[:, None], statistics)
    unclipped = Comparer(statistics, clip=False)
    return unclipped.compare(guess, pairing.encodings[:, None])
