"""Which candidate images are in an encoding: a matched filter on squares of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import (
    Attack,
    MixtureGuess,
    ProgressCallback,
    Reconstruction,
    Recovered,
)
from instahide_fl.attacks.magnitudes import shifted_to_zero
from instahide_fl.attacks.whitening import Whitening, features_of
from instahide_fl.config.base import Count
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import augmentation_for
from instahide_fl.errors import AttackError
from instahide_fl.transcript.candidates import CandidateImages
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView
from instahide_fl.types import AppliedAugmentation

BLOCK = 512  # candidates that are transformed and compared at a time
MAX_SHIFTS = 9  # positions along an axis; larger images are shifted in larger steps
SHARPNESS = 3.0
"""Deviations that an image in an encoding stands out by, about: how much the best of
several encodings counts more than their mean."""


@dataclass(frozen=True)
class _Filter:
    """Encodings as matched filters.

    Attributes:
        whitening: Mean and covariance of the features of images.
        filters: f32[E,d], the encodings' features, whitened twice: their products with
            plain features are those of whitened vectors.
    """

    whitening: Whitening
    filters: Tensor

    @classmethod
    def of(cls, encodings: Tensor, whitening: Whitening) -> _Filter:
        """Prepare encodings, f32[E,C,H,W], normalised."""
        features = features_of(encodings, whitening.ignore_signs) - whitening.mean
        whitened = whitening.whitened(features)
        return cls(whitening, whitening.whitened(whitened, again=True))

    def scores(self, images: Tensor, length: Tensor) -> Tensor:
        """Return f32[E,n] for images f32[n,C,H,W] of whitened length f32[n]."""
        features = features_of(images, self.whitening.ignore_signs)
        return self.filters @ (features - self.whitening.mean).T / length


class MembershipEncodings(Attack):
    """Score candidates by the correlation of whitened squares with encodings."""

    name: ClassVar[str] = "membership_encodings"
    summary: ClassVar[str] = (
        "which candidate images a client's encodings mix, from as little as one"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.ENCODINGS})
    cost: ClassVar[str] = (
        "about a minute for 10,000 candidates; with crops and mirroring each encoding "
        "is compared with 162 versions of each candidate, minutes"
    )
    source: ClassVar[str] = (
        "a matched filter on squares, which signs leave alone: of this project"
    )
    threat_model: ClassVar[str] = "encodings-holder"

    max_encodings: Count = 1000
    """Encodings of a client that are looked at, the first ones."""
    absolute_values: bool = False
    """Whether absolute values of encodings are attacked, up to scale and offset, as an
    update of a sign-invariant network gives them away."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Score all candidates for each client.

        Args:
            view: The adversary's view, with encodings and candidates.
            rng: The generator of the crops that the covariance is measured on.
            progress: The callback for progress, in clients.

        Raises:
            AttackError: there are no encodings, or no candidates to ask about.
        """
        candidates = view.mixed_candidates
        if candidates is None:
            raise AttackError(
                "attack membership_encodings asks which candidates are in encodings, "
                "and the data set that the candidates come from is not there: keep it "
                "where data.dataset says"
            )
        by_client = _encodings_by_client(view)
        masked = view.config.instahide.method == "instahide"
        whitening = Whitening.of_images(_as_mixed(view, candidates, rng), masked)
        lengths = torch.cat(
            [
                whitening.whitened(features_of(images, masked) - whitening.mean).norm(
                    dim=1
                )
                for images in _blocks(view, candidates, [])
            ]
        )
        versions = _versions(view)
        recovered = []
        for number, (client, encodings) in enumerate(by_client.items(), start=1):
            # Where several rounds repeat an encoding, it is evidence once.
            rows = _distinct(encodings)[: self.max_encodings]
            chosen = encodings[rows]
            if self.absolute_values:
                chosen = shifted_to_zero(chosen)
            scores = _scores(
                _Filter.of(chosen, whitening), view, candidates, lengths, versions
            )
            recovered.append(
                Recovered(
                    client,
                    round=0,
                    mixture=MixtureGuess(
                        encodings=rows,
                        scores=scores,
                        together=torch.logsumexp(SHARPNESS * scores, dim=0),
                    ),
                    diagnostics={
                        "encodings": float(len(rows)),
                        "versions_of_a_candidate": float(max(1, len(versions))),
                    },
                )
            )
            progress(number, len(by_client))
        return Reconstruction("membership", tuple(recovered), aligned=bool(versions))


def _encodings_by_client(view: AdversaryView) -> dict[str, Tensor]:
    """Return the encodings of each client, of all rounds in their order.

    Raises:
        AttackError: no client has any.
    """
    by_client: dict[str, list[Tensor]] = {}
    for observation in view.observations:
        if observation.encodings is not None and len(observation.encodings):
            by_client.setdefault(observation.client, []).append(observation.encodings)
    if not by_client:
        raise AttackError(
            "there are no encodings to attack: record at least one round "
            '(--set record.rounds="1") with clients in it'
        )
    return {client: torch.cat(parts) for client, parts in by_client.items()}


def _distinct(encodings: Tensor) -> Tensor:
    """Return i64[n], the first row of each distinct encoding, ascending."""
    rows: dict[bytes, int] = {}
    for row, encoding in enumerate(encodings):
        rows.setdefault(encoding.numpy().tobytes(), row)
    return torch.tensor(list(rows.values()))


def _augmentation(view: AdversaryView) -> Augmentation | None:
    """Return the crops and flips of the images in encodings; None for none."""
    return augmentation_for(view.config.data, view.image_shape)


def _versions(view: AdversaryView) -> list[tuple[Augmentation, AppliedAugmentation]]:
    """Return all crops and mirrorings; none where images stay as they are."""
    augmentation = _augmentation(view)
    if augmentation is None:
        return []
    last = 2 * augmentation.padding
    offsets = sorted({round(last * i / (MAX_SHIFTS - 1)) for i in range(MAX_SHIFTS)})
    flips = (False, True) if augmentation.flip else (False,)
    return [
        (
            augmentation,
            AppliedAugmentation(torch.tensor([[down, across]]), torch.tensor([flip])),
        )
        for down in offsets
        for across in offsets
        for flip in flips
    ]


def _as_mixed(
    view: AdversaryView, candidates: CandidateImages, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Yield f32[b,C,H,W], normalised, each cropped and mirrored at random if need be.

    Black margins are in encodings of crops, so they have to be in the covariance: the
    filter would otherwise mostly see their edges.
    """
    augmentation = _augmentation(view)
    for pixels in torch.split(candidates.images, BLOCK):
        shown = pixels
        if augmentation is not None:
            shown = augmentation.apply(pixels, augmentation.draw(len(pixels), rng))
        yield view.statistics.normalise(shown)


def _blocks(
    view: AdversaryView,
    candidates: CandidateImages,
    version: Sequence[tuple[Augmentation, AppliedAugmentation]],
) -> Iterator[Tensor]:
    """Yield f32[b,C,H,W], candidates in one version, normalised."""
    for pixels in torch.split(candidates.images, BLOCK):
        shown = pixels
        for augmentation, drawn in version:
            count = len(pixels)
            same = AppliedAugmentation(
                drawn.offset.expand(count, 2), drawn.flip.expand(count)
            )
            shown = augmentation.apply(pixels, same)
        yield view.statistics.normalise(shown)


def _scores(
    matched: _Filter,
    view: AdversaryView,
    candidates: CandidateImages,
    lengths: Tensor,
    versions: Sequence[tuple[Augmentation, AppliedAugmentation]],
) -> Tensor:
    """Return f32[E,M], in deviations among the candidates of each encoding.

    The best version of a candidate counts. Deviations are taken within a version: black
    margins of a crop are the same in all candidates, and no sign of any of them.
    """
    best: Tensor | None = None
    for chosen in [[version] for version in versions] or [[]]:
        parts, start = [], 0
        for images in _blocks(view, candidates, chosen):
            length = lengths[start : start + len(images)]
            parts.append(matched.scores(images, length))
            start += len(images)
        scores = _in_deviations(torch.cat(parts, dim=1))
        best = scores if best is None else torch.maximum(best, scores)
    assert best is not None
    return best


def _in_deviations(scores: Tensor) -> Tensor:
    """Return f32[E,M], standardised among the candidates of each encoding."""
    spread = scores.std(dim=1, keepdim=True).clamp_min(1e-12)
    return (scores - scores.mean(dim=1, keepdim=True)) / spread
