"""Which candidate images are in an encoding: a matched filter on squares of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
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
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import augmentation_for
from instahide_fl.errors import AttackError
from instahide_fl.transcript.candidates import CandidateImages
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView
from instahide_fl.types import AppliedAugmentation

BLOCK = 512  # candidates that are transformed and compared at a time
MAX_SHIFTS = 9  # positions along an axis; larger images are shifted in larger steps
MAX_ENCODINGS = 5000  # of all clients together, unless a setting says more
MAX_CROPPED = 100  # where each is compared with many versions of each candidate
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

    def length(self, images: Tensor) -> Tensor:
        """Return f32[n], the whitened lengths of images f32[n,C,H,W], normalised."""
        features = features_of(images, self.whitening.ignore_signs)
        whitened = self.whitening.whitened(features - self.whitening.mean)
        return whitened.square().sum(dim=1).sqrt()

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

    max_encodings: Annotated[int, Field(ge=0)] = 0
    """Encodings of a client that are looked at, the first ones; 0 for 5,000 of all
    clients together, or 100 where crops are searched for."""
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
            progress: The callback for progress, in versions of the candidates.

        Raises:
            AttackError: there are no encodings, or no candidates to ask about.
        """
        candidates, by_client = _candidates(view), _encodings_by_client(view)
        versions = _versions(view)
        limit = self._limit(len(by_client), bool(versions))
        # Where several rounds repeat an encoding, it is evidence once.
        rows = {name: _distinct(part)[:limit] for name, part in by_client.items()}
        chosen = torch.cat([by_client[name][index] for name, index in rows.items()])
        if self.absolute_values:
            chosen = shifted_to_zero(chosen)
        masked = view.config.instahide.method == "instahide"
        whitening = Whitening.of_images(_as_mixed(view, candidates, rng), masked)
        scores = _scores(
            _Filter.of(chosen, whitening), view, candidates, versions, progress
        )
        by_rows = torch.split(scores, [len(index) for index in rows.values()])
        recovered = [
            Recovered(
                client,
                round=0,
                mixture=MixtureGuess(
                    encodings=index,
                    scores=part,
                    together=torch.logsumexp(SHARPNESS * part, dim=0),
                ),
                diagnostics={
                    "encodings": float(len(index)),
                    "versions_of_a_candidate": float(max(1, len(versions))),
                },
            )
            for (client, index), part in zip(rows.items(), by_rows, strict=True)
        ]
        return Reconstruction("membership", tuple(recovered), aligned=bool(versions))

    def _limit(self, num_clients: int, cropped: bool) -> int:
        """Return the number of encodings of a client to look at, at least one."""
        if self.max_encodings:
            return self.max_encodings
        return max(1, (MAX_CROPPED if cropped else MAX_ENCODINGS) // num_clients)


def _candidates(view: AdversaryView) -> CandidateImages:
    """Return the images that are asked about.

    Raises:
        AttackError: there are none.
    """
    if view.mixed_candidates is None:
        raise AttackError(
            "attack membership_encodings asks which candidates are in encodings, and "
            "the data set that the candidates come from is not there: keep it where "
            "data.dataset says"
        )
    return view.mixed_candidates


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
    versions: Sequence[tuple[Augmentation, AppliedAugmentation]],
    progress: ProgressCallback,
) -> Tensor:
    """Return f32[E,M], in deviations among the candidates of each encoding.

    The best version of a candidate counts. Deviations are taken within a version: black
    margins of a crop are the same in all candidates, and no sign of any of them.
    """
    lengths = [matched.length(images) for images in _blocks(view, candidates, [])]
    best: Tensor | None = None
    each: list[list[tuple[Augmentation, AppliedAugmentation]]]
    each = [[version] for version in versions] or [[]]
    for number, version in enumerate(each, start=1):
        blocks = _blocks(view, candidates, version)
        parts = [
            matched.scores(images, length)
            for images, length in zip(blocks, lengths, strict=True)
        ]
        scores = _in_deviations(torch.cat(parts, dim=1))
        best = scores if best is None else torch.maximum(best, scores)
        progress(number, len(each))
    assert best is not None
    return best


def _in_deviations(scores: Tensor) -> Tensor:
    """Return f32[E,M], standardised among the candidates of each encoding."""
    spread = scores.std(dim=1, keepdim=True).clamp_min(1e-12)
    return (scores - scores.mean(dim=1, keepdim=True)) / spread
