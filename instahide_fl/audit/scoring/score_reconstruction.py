"""Scoring what an attack recovered against what the clients hid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from instahide_fl.attacks.base import Reconstruction
from instahide_fl.audit.scoring.attack_scores import (
    AttackScores,
    BestPositionSimilarity,
    IdentificationScores,
    ImageSimilarity,
)
from instahide_fl.audit.scoring.candidate_scores import score_candidates
from instahide_fl.audit.scoring.folded_scores import encoding_folded, private_folded
from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.audit.scoring.image_scorer import ImageScorer, ScoredImages
from instahide_fl.audit.scoring.key_scores import score_keys
from instahide_fl.audit.scoring.label_scores import score_hard_labels, score_soft_labels
from instahide_fl.audit.scoring.membership_scores import score_membership
from instahide_fl.audit.scoring.mixture_scores import score_mixtures
from instahide_fl.audit.scoring.public_image_scores import (
    score_components,
    shown_components,
)
from instahide_fl.audit.scoring.shown_images import first_of_each_client
from instahide_fl.metrics.comparison import Comparison
from instahide_fl.metrics.identification import Identification
from instahide_fl.metrics.perceptual import lpips, lpips_absent
from instahide_fl.metrics.registration import registered_ssim
from instahide_fl.metrics.scores import ImageScores, Summary


def score_reconstruction(
    reconstruction: Reconstruction,
    ground_truth: GroundTruth,
    rng: np.random.Generator,
) -> AttackScores:
    """Compare what an attack recovered with the truth.

    Statistics of batches are scored apart: see `statistics_scores`.

    Args:
        reconstruction: What the attack returned.
        ground_truth: What the clients hid.
        rng: The generator that draws the noise and the guesses of the baselines.

    Raises:
        TranscriptError: the truth of a client is missing.
        ShapeError: images, rows, labels or scores do not fit the truth.
    """
    truth = ground_truth.for_reconstruction(reconstruction)
    clients = truth.recovered_clients(reconstruction)
    target = reconstruction.target
    scorer = ImageScorer(target, truth, rng)
    scored = [
        scorer.score(client)
        for client in clients
        if client.recovered.images is not None and len(client.recovered.images)
    ]
    membership = score_membership(
        reconstruction.membership, truth.membership
    ) or score_mixtures(clients, ground_truth)
    caveats = [*_caveats(reconstruction, truth)]
    if membership is not None:
        caveats += membership.caveats()
    return AttackScores(
        target=target,
        reconstructions=sum(images.count for images in scored),
        private=_private_similarity(scored),
        encoding=_encoding_similarity(scored),
        identified=_identified(scored),
        lpips=_lpips(scored),
        hard_labels=score_hard_labels(clients, target, truth.num_classes, rng),
        soft_labels=score_soft_labels(clients, truth.num_classes),
        best_position=_best_position(reconstruction, truth, scored),
        shown=first_of_each_client(images.shown for images in scored),
        caveats=tuple(caveats),
        keys=score_keys(reconstruction, truth.truths),
        components=score_components(clients),
        candidates=score_candidates(
            [images.paired for images in scored], truth.candidates
        ),
        shown_components=shown_components(clients),
        membership=membership,
    )


def _private_similarity(scored: Sequence[ScoredImages]) -> ImageSimilarity | None:
    similarity = _similarity(
        attack=[images.pairing.private for images in scored],
        uninformed=[images.uninformed for images in scored],
        noise=[draw.private for images in scored for draw in images.noise],
        others=[draw.private for images in scored for draw in images.others],
    )
    if similarity is None:
        return None
    folded = private_folded([images.folded for images in scored])
    return replace(similarity, folded=folded)


def _encoding_similarity(scored: Sequence[ScoredImages]) -> ImageSimilarity | None:
    attack = [images.pairing.encoding for images in scored]
    uninformed = [images.uninformed_encoding for images in scored]
    noise = [draw.encoding for images in scored for draw in images.noise]
    similarity = _similarity(
        attack=[comparison for comparison in attack if comparison],
        uninformed=[comparison for comparison in uninformed if comparison],
        noise=[comparison for comparison in noise if comparison],
        others=[],
    )
    if similarity is None:
        return None
    folded = encoding_folded([images.folded for images in scored])
    return replace(similarity, folded=folded)


def _similarity(
    attack: Sequence[Comparison],
    uninformed: Sequence[Comparison],
    noise: Sequence[Comparison],
    others: Sequence[Comparison],
) -> ImageSimilarity | None:
    if not attack:
        return None
    return ImageSimilarity(
        ImageScores.of(Comparison.concatenate(attack)),
        ImageScores.of(Comparison.concatenate(uninformed)),
        ImageScores.of(Comparison.concatenate(noise)),
        ImageScores.of(Comparison.concatenate(others)) if others else None,
    )


def _identified(scored: Sequence[ScoredImages]) -> IdentificationScores | None:
    attack = [images.pairing.identification for images in scored]
    noise = [draw.identification for images in scored for draw in images.noise]
    decided = [counts for counts in attack if counts is not None]
    if not decided or len(decided) < len(attack):
        return None
    return IdentificationScores(
        sum(decided, Identification()),
        sum((counts for counts in noise if counts is not None), Identification()),
    )


def _lpips(scored: Sequence[ScoredImages]) -> Summary | str:
    if not scored:
        return "no images were recovered"
    if reason := lpips_absent():
        return reason
    shown = torch.cat([images.in_better_sign for images in scored])
    originals = torch.cat([images.pairing.originals for images in scored])
    return Summary.of_error(lpips(shown, originals))


def _best_position(
    reconstruction: Reconstruction,
    ground_truth: GroundTruth,
    scored: Sequence[ScoredImages],
) -> BestPositionSimilarity | None:
    """Score at the best crop and flip, when these are unknown."""
    if not scored or not ground_truth.augmented or reconstruction.target != "private":
        return None
    originals = torch.cat([images.pairing.originals for images in scored])
    shown = torch.cat([images.in_better_sign for images in scored])
    guess = torch.cat([images.guess for images in scored])
    return BestPositionSimilarity(
        Summary.of_ssim(registered_ssim(shown, originals)),
        Summary.of_ssim(registered_ssim(guess, originals)),
    )


def _caveats(
    reconstruction: Reconstruction, ground_truth: GroundTruth
) -> Iterator[str]:
    """Say what a reader of the figures should know."""
    target, augmented = reconstruction.target, ground_truth.augmented
    broken = sum(
        int((~recovered.images.isfinite()).flatten(1).any(dim=1).sum())
        for recovered in reconstruction.recovered
        if recovered.images is not None
    )
    if broken:
        yield (
            f"{broken} reconstructions held values that are not finite, which were "
            f"scored as the mean colour"
        )
    aligned = target == "encoding" and ground_truth.augmentation is not None
    undone = reconstruction.keys is not None
    with_images = target in ("encoding", "private")
    if augmented and not (aligned or undone) and with_images:
        yield (
            "images were cropped and mirrored at random before mixing and are held "
            "against the originals without that: similarity is understated; audit with "
            'data.augment="none"'
        )
    if augmented and target == "private" and not reconstruction.aligned:
        yield (
            "this attack does not undo crops and mirroring: what it does not find is "
            "no sign that they protect anything, before registered_decoding has run"
        )
