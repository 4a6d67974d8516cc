"""Scoring an attack against the truth of a simulation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import Reconstruction, Recovered, Target
from instahide_fl.audit.scoring.attack_scores import (
    Column,
    Identified,
    Registered,
    Scores,
)
from instahide_fl.audit.scoring.key_scores import score_keys
from instahide_fl.audit.scoring.label_scores import score_hard_labels, score_soft_labels
from instahide_fl.audit.scoring.originals import (
    Originals,
    truths_of,
    uninformed_guess,
)
from instahide_fl.audit.scoring.pairing import EncodingTruth, Pairing, PrivateTruth
from instahide_fl.audit.scoring.public_image_scores import (
    score_components,
    shown_components,
)
from instahide_fl.audit.scoring.shown_images import (
    ShownImages,
    align_shown,
    first_of_each_client,
)
from instahide_fl.data.augment import Augmentation
from instahide_fl.errors import ShapeError
from instahide_fl.metrics.baselines import matched_noise
from instahide_fl.metrics.comparison import Comparer, Comparison
from instahide_fl.metrics.identification import Identification
from instahide_fl.metrics.perceptual import lpips, lpips_absent
from instahide_fl.metrics.registration import registered_ssim
from instahide_fl.metrics.scores import ImageScores, Summary
from instahide_fl.transcript.aggregate import ALL_CLIENTS, truths_together
from instahide_fl.transcript.truth import ClientTruth
from instahide_fl.types import ChannelStatistics

NOISE_DRAWS = 5  # at most
OTHER_DRAWS = 20  # at most: how alike two images are by chance varies more
PAIRS_DRAWN = 50_000  # compared for a client and baseline, to bound the time


def score(
    reconstruction: Reconstruction,
    truths: Mapping[tuple[int, str], ClientTruth],
    statistics: ChannelStatistics,
    num_classes: int,
    rng: np.random.Generator,
    augmentation: Augmentation | None = None,
) -> Scores:
    """Compare what an attack recovered with what was there.

    Args:
        reconstruction: of the attack.
        truths: by round and client; those of all clients are joined where the attack
            was on aggregates.
        statistics: constants that images are normalised with.
        num_classes: K.
        rng: draws the noise and the guesses of the baselines.
        augmentation: of the run; encodings are then held against private images as
            they were cropped and mirrored.

    Raises:
        TranscriptError: the truth of a client is missing.
        ShapeError: images, rows or labels do not fit the truth.
    """
    if any(one.client == ALL_CLIENTS for one in reconstruction.recovered):
        truths = truths_together(truths)
    originals = Originals.of(truths, statistics)
    scorer = _Scorer(reconstruction.target, truths, originals, augmentation, rng)
    with_images = [
        one
        for one in reconstruction.recovered
        if one.images is not None and len(one.images)
    ]
    scored = [scorer.score(one) for one in with_images]
    return Scores(
        target=reconstruction.target,
        reconstructions=sum(one.reconstructions for one in scored),
        private=_private_column(scored),
        encoding=_encoding_column(scored),
        identified=_identified(scored),
        lpips=_lpips(scored),
        hard_labels=score_hard_labels(reconstruction, truths, num_classes, rng),
        soft_labels=score_soft_labels(reconstruction, truths, num_classes),
        registered=_registered(reconstruction, truths, scored),
        shown=first_of_each_client(one.shown for one in scored),
        caveats=tuple(_caveats(reconstruction, truths, augmentation)),
        keys=score_keys(reconstruction, truths),
        components=score_components(reconstruction, truths),
        shown_components=shown_components(reconstruction, truths),
    )


@dataclass(frozen=True)
class _Scored:
    """One client's reconstructions and their baselines.

    Attributes:
        reconstructions: how many there are.
        found: how they were held against the truth.
        noise: the same of draws of matched noise.
        others: the same of draws of other private images; may be empty.
        uninformed: guesses against the private images of the same victims.
        uninformed_encoding: against their encodings; None if none were recovered.
        in_better_sign: f32[R,C,H,W], reconstructions in their better sign, clipped.
        guess: f32[R,C,H,W] in [0, 1], what is guessed without any attack.
        shown: to draw.
    """

    reconstructions: int
    found: Pairing
    noise: Sequence[Pairing]
    others: Sequence[Pairing]
    uninformed: Comparison
    uninformed_encoding: Comparison | None
    in_better_sign: Tensor
    guess: Tensor
    shown: ShownImages


@dataclass(frozen=True)
class _Scorer:
    target: Target
    truths: Mapping[tuple[int, str], ClientTruth]
    originals: Originals
    augmentation: Augmentation | None
    rng: np.random.Generator

    def score(self, recovered: Recovered) -> _Scored:
        """Hold one client's images, at least one, and their baselines against it."""
        statistics, client = self.originals.statistics, recovered.client
        truth = self._truth(recovered)
        images = statistics.restore(_checked(recovered, truth.own.images))
        found = truth.pair(images)
        affordable = max(1, PAIRS_DRAWN // (len(images) * len(truth)))
        noise = [
            truth.pair(matched_noise(images, self.rng))
            for _ in range(min(NOISE_DRAWS, affordable))
        ]
        draws = min(OTHER_DRAWS, affordable)
        drawn = self._drawn_others(client, len(images), draws)
        others = [truth.pair(one) for one in drawn]
        plain = Comparer(statistics, clip=True)
        guess = self.originals.mean_of_others(client, found.components)
        picked = images[found.index]
        flipped = found.private.flipped[:, None, None, None]
        return _Scored(
            reconstructions=len(images),
            found=found,
            noise=noise,
            others=others,
            uninformed=plain.compare(guess, found.candidates),
            uninformed_encoding=_uninformed_encoding(truth, found, statistics),
            in_better_sign=torch.where(
                flipped, plain.opposite(picked), plain.shown(picked)
            ),
            guess=plain.shown(guess),
            shown=align_shown(client, images, found, statistics),
        )

    def _drawn_others(self, client: str, count: int, draws: int) -> Iterator[Tensor]:
        """Yield f32[count,C,H,W] in [0, 1], `draws` times; nothing without images."""
        others = self.originals.not_of(client)
        for _ in range(draws if len(others) else 0):
            fewer = len(others) < count
            picked = self.rng.choice(len(others), count, replace=fewer)
            yield others[torch.from_numpy(picked)]

    def _truth(self, recovered: Recovered) -> EncodingTruth | PrivateTruth:
        known = truths_of(recovered, self.truths)
        own, statistics = (
            self.originals.clients[recovered.client],
            self.originals.statistics,
        )
        if self.target == "encoding":
            return EncodingTruth.of(known, own, statistics, self.augmentation)
        every = [
            truth
            for (_, client), truth in self.truths.items()
            if client == recovered.client
        ]
        _check_rows(recovered, own.rows)
        return PrivateTruth.of(every, own, statistics, recovered.rows)


def _checked(recovered: Recovered, own: Tensor) -> Tensor:
    """Return the images, f32[M,C,H,W]; what is not finite becomes the mean colour."""
    images = recovered.images
    if images is None or images.shape[1:] != own.shape[1:]:
        got = None if images is None else tuple(images.shape)
        raise ShapeError(
            f"reconstructions of client {recovered.client} must be [M, "
            f"{', '.join(map(str, own.shape[1:]))}], got {got}"
        )
    return images.detach().cpu().float().nan_to_num(0.0, 0.0, 0.0)


def _check_rows(recovered: Recovered, rows: Tensor) -> None:
    given, images = recovered.rows, recovered.images
    if given is None or images is None:
        return
    if given.shape != images.shape[:1] or not bool(torch.isin(given, rows).all()):
        raise ShapeError(
            f"rows of client {recovered.client} must name one recorded image for each "
            f"of the {len(images)} reconstructions, got {given.tolist()[:10]}"
        )


def _uninformed_encoding(
    truth: EncodingTruth | PrivateTruth, found: Pairing, statistics: ChannelStatistics
) -> Comparison | None:
    if isinstance(truth, PrivateTruth):
        return None
    guess = uninformed_guess(truth.encodings, found.order[:, None], statistics)
    mixed = Comparer(statistics, clip=False)
    return mixed.compare(guess, found.encodings[:, None])


def _private_column(scored: Sequence[_Scored]) -> Column | None:
    noise = [draw.private for one in scored for draw in one.noise]
    others = [draw.private for one in scored for draw in one.others]
    found = [one.found.private for one in scored]
    return _column(found, [one.uninformed for one in scored], noise, others)


def _encoding_column(scored: Sequence[_Scored]) -> Column | None:
    draws = [draw.encoding for one in scored for draw in one.noise]
    return _column(
        [one.found.encoding for one in scored if one.found.encoding],
        [one.uninformed_encoding for one in scored if one.uninformed_encoding],
        [draw for draw in draws if draw],
        (),
    )


def _column(
    found: Sequence[Comparison],
    uninformed: Sequence[Comparison],
    noise: Sequence[Comparison],
    others: Sequence[Comparison],
) -> Column | None:
    if not found:
        return None
    return Column(
        ImageScores.of(Comparison.joined(found)),
        ImageScores.of(Comparison.joined(uninformed)),
        ImageScores.of(Comparison.joined(noise)),
        ImageScores.of(Comparison.joined(others)) if others else None,
    )


def _identified(scored: Sequence[_Scored]) -> Identified | None:
    found = [one.found.identification for one in scored]
    noise = [draw.identification for one in scored for draw in one.noise]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    return Identified(
        sum(known, Identification()),
        sum((one for one in noise if one is not None), Identification()),
    )


def _lpips(scored: Sequence[_Scored]) -> Summary | str:
    if not scored:
        return "no images were recovered"
    if reason := lpips_absent():
        return reason
    shown = torch.cat([one.in_better_sign for one in scored])
    originals = torch.cat([one.found.originals for one in scored])
    return Summary.of_error(lpips(shown, originals))


def _registered(
    reconstruction: Reconstruction,
    truths: Mapping[tuple[int, str], ClientTruth],
    scored: Sequence[_Scored],
) -> Registered | None:
    """Score in the best position, where nobody can know how images lay."""
    augmented = any(truth.key.augmentation is not None for truth in truths.values())
    if not scored or not augmented or reconstruction.target != "private":
        return None
    originals = torch.cat([one.found.originals for one in scored])
    shown = torch.cat([one.in_better_sign for one in scored])
    guess = torch.cat([one.guess for one in scored])
    return Registered(
        Summary.of_ssim(registered_ssim(shown, originals)),
        Summary.of_ssim(registered_ssim(guess, originals)),
    )


def _caveats(
    reconstruction: Reconstruction,
    truths: Mapping[tuple[int, str], ClientTruth],
    augmentation: Augmentation | None,
) -> list[str]:
    """Say what a reader of the figures should know."""
    found, target = [], reconstruction.target
    broken = sum(
        int((~one.images.isfinite()).flatten(1).any(dim=1).sum())
        for one in reconstruction.recovered
        if one.images is not None
    )
    if broken:
        found.append(
            f"{broken} reconstructions held values that are not finite, which were "
            f"scored as the mean colour"
        )
    augmented = any(truth.key.augmentation is not None for truth in truths.values())
    aligned = target == "encoding" and augmentation is not None
    undone = reconstruction.keys is not None
    with_images = target in ("encoding", "private")
    if augmented and not (aligned or undone) and with_images:
        found.append(
            "images were cropped and mirrored at random before mixing and are held "
            "against the originals without that: similarity is understated; audit with "
            'data.augment="none"'
        )
    if augmented and reconstruction.target == "private" and not reconstruction.aligned:
        found.append(
            "this attack does not undo crops and mirroring: what it does not find is "
            "no sign that they protect anything, before registered_decoding has run"
        )
    return found
