"""Search for the seed that a simulation's keys were drawn from, and replay them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import Advance, Attack, Reconstruction, Recovered
from instahide_fl.attacks.key_replay.known_keys import open_encodings
from instahide_fl.attacks.key_replay.seed_check import (
    MASK_DEVIATIONS,
    coefficients_fit,
    mask_deviations,
    nonzero_entries,
)
from instahide_fl.attacks.key_replay.seeded_client import SeededClient
from instahide_fl.attacks.layers.linear_layers import build_network
from instahide_fl.attacks.layers.recovered_labels import with_recovered_labels
from instahide_fl.config.base import Count, CountOrZero
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import augmentation_for
from instahide_fl.errors import AttackError
from instahide_fl.training.local import has_dropout
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView, Observation
from instahide_fl.types import EncodingKey

CHUNK = 1000  # seeds between two looks at the labels
ROWS = 16  # of the first batch, among which the most telling label is taken
CHANCE = 1e-4  # that a number in a label fits wrong coefficients, at most
FALSE_ALARMS = 0.01  # seeds that fit by chance, at most

Keys: TypeAlias = dict[tuple[int, str], EncodingKey]


class KeyReplay(Attack):
    """Try seeds one after another until the keys they give fit what was observed."""

    name: ClassVar[str] = "key_replay"
    summary: ClassVar[str] = (
        "all keys, and so the private images, of a run whose keys come from a seed"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.LABELS})
    cost: ClassVar[str] = (
        "10 to 20 seconds for 100,000 seeds; secure keys cannot be searched for"
    )
    source: ClassVar[str] = (
        "seed search as against the InstaHide challenge: Carlini et al., IEEE S&P 2021"
    )
    no_control: ClassVar[str] = "a run that hides nothing has no keys"
    threat_model: ClassVar[str] = "encodings-holder"

    first: CountOrZero = 0
    """Seed to begin with."""
    seeds: Count = 100_000
    """How many to try, one after another."""
    images_held: CountOrZero = 0
    """Images that each client holds, where the transcript does not say; 0 takes what it
    says."""

    def check(self, view: AdversaryView) -> None:
        """Refuse an adversary who has neither labels nor updates that give them away.

        Raises:
            ThreatModelError: both are withheld.
        """
        if Knowledge.UPDATES not in view.threat_model.knows:
            super().check(view)

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, advance: Advance
    ) -> Reconstruction:
        """Search.

        Args:
            view: with encodings, or with updates of single images: their soft labels.
            rng: not used.
            advance: told how many seeds were tried.

        Raises:
            AttackError: there are no keys, or nothing that a candidate can be held
                against.
        """
        evidence = _Evidence.of(view, self.images_held, self.seeds)
        start = time.perf_counter()
        seed, tried = None, 0
        for chunk in _chunks(self.first, self.seeds):
            seed = next(filter(evidence.confirms, evidence.candidates(chunk)), None)
            tried += len(chunk) if seed is None else seed - chunk[0] + 1
            advance(self.seeds if seed is not None else tried, self.seeds)
            if seed is not None:
                break
        rate = tried / max(1e-9, time.perf_counter() - start)
        found = {"seeds_tried": float(tried), "seeds_per_second": round(rate)}
        keys: Keys = {}
        if seed is not None:
            keys = evidence.keys(seed)
            found["seed"] = float(seed)
        found["keys_found"] = float(sum(map(len, keys.values())))
        images = _opened(view, keys, evidence.augmentation)
        return Reconstruction("private", images, found, keys=keys)


@dataclass(frozen=True)
class _Evidence:
    """What a candidate seed is held against.

    Attributes:
        view: of the adversary.
        clients: with what each of them showed.
        augmentation: of private images before mixing.
        row: of the first client's first batch: its label tells most.
        entries: f32[m] of that label; None if no label tells anything.
        labels_decide: whether labels hold so much that no mask need be looked at.
    """

    view: AdversaryView
    clients: Sequence[tuple[SeededClient, Observation]]
    augmentation: Augmentation | None
    row: int
    entries: Tensor | None
    labels_decide: bool

    @classmethod
    def of(cls, view: AdversaryView, images_held: int, seeds: int) -> _Evidence:
        """Collect it for a search among so many seeds.

        Raises:
            AttackError: there are no keys, or nothing to hold a candidate against.
        """
        _check_keys(view)
        known = view
        if not any(_shows(one) for one in view.observations):
            known = with_recovered_labels(view)
        seen = [one for one in known.observations if _shows(one)]
        if not seen:
            raise AttackError(
                f"key_replay holds keys against encodings or soft labels, and the "
                f"threat model {view.threat_model.name} gives neither, nor updates of "
                f"single images: use encodings-holder, or record a run with "
                f"train.batch-size = 1 and train.local-batches = 1"
            )
        model = build_network(view.config, view.image_shape, view.num_classes)
        clients = [
            (_seeded(view, one, images_held, has_dropout(model)), one) for one in seen
        ]
        row, entries = _telling_label(view, seen[0])
        found = cls(
            view,
            clients,
            augmentation_for(view.config.data, view.image_shape),
            row,
            entries,
            seeds * CHANCE ** _numbers_told(view, seen[0]) <= FALSE_ALARMS,
        )
        found._check_enough()
        return found

    def candidates(self, seeds: Sequence[int]) -> Iterator[int]:
        """Yield the seeds that a first look leaves."""
        client, seen = self.clients[0]
        if self.entries is not None:
            private = self.view.config.instahide.private_count
            drawn = [client.coefficients(seed, self.row) for seed in seeds]
            fits = coefficients_fit(torch.stack(drawn)[:, :private], self.entries)
            yield from (seeds[at] for at in fits.nonzero()[:, 0].tolist())
            return
        for seed in seeds:
            key = self._key(client, seed, batches=1)
            if _mask_fits(seen, key):
                yield seed

    def confirms(self, seed: int) -> bool:
        """Tell whether the keys of a seed fit all that the first client showed."""
        return self._fits(*self.clients[0], seed) is not None

    def keys(self, seed: int) -> Keys:
        """Return the keys of all clients and rounds that a seed fits."""
        found = {
            (seen.round, seen.client): self._fits(client, seen, seed)
            for client, seen in self.clients
        }
        return {place: key for place, key in found.items() if key is not None}

    def _fits(
        self, client: SeededClient, seen: Observation, seed: int
    ) -> EncodingKey | None:
        """Return the keys of a seed if they fit all that a client showed."""
        key = self._key(client, seed)
        if seen.soft_targets is not None:
            if len(seen.soft_targets) != len(key):
                return None
            private = key.coefficients[:, : key.private_index.shape[1]]
            for row, label in enumerate(seen.soft_targets):
                if not coefficients_fit(private[row : row + 1], nonzero_entries(label)):
                    return None
        return key if self.labels_decide or _mask_fits(seen, key) else None

    def _key(self, client: SeededClient, seed: int, batches: int = -1) -> EncodingKey:
        view = self.view
        return client.key(seed, view.image_shape, view.pool, self.augmentation, batches)

    def _check_enough(self) -> None:
        """Refuse what would fit too many seeds to tell one from another.

        Raises:
            AttackError: there are no masks to look at, and labels that say too little.
        """
        _, seen = self.clients[0]
        flipped = self.view.config.instahide.method == "instahide"
        if self.labels_decide or (flipped and seen.encodings is not None):
            return
        raise AttackError(
            f"key_replay: the {_numbers_told(self.view, seen)} numbers that the soft "
            f"labels of client {seen.client} in round {seen.round} tell of its keys "
            f"fit several seeds by chance: try fewer seeds, or record larger batches"
        )


def _check_keys(view: AdversaryView) -> None:
    """Refuse a view without anything to find.

    Raises:
        AttackError: the run draws no keys, no client is seen, or the pool is unknown.
    """
    encoding = view.config.instahide
    if encoding.method == "none":
        raise AttackError(
            'key_replay looks for keys, and instahide.method = "none" draws none'
        )
    if not view.observations:
        raise AttackError(
            f"key_replay needs single clients, and the threat model "
            f"{view.threat_model.name} sees none: use encodings-holder"
        )
    if encoding.uses_pool and view.pool is None:
        raise AttackError(
            f"key_replay needs the public pool, which the threat model "
            f"{view.threat_model.name} withholds: use encodings-holder"
        )


def _shows(seen: Observation) -> bool:
    return seen.encodings is not None or seen.soft_targets is not None


def _seeded(
    view: AdversaryView, seen: Observation, images_held: int, dropout: bool
) -> SeededClient:
    held = images_held or seen.images_held
    if held < view.config.instahide.private_count:
        raise AttackError(
            f"key_replay needs to know how many images client {seen.client} holds, "
            f"and the transcript does not say: set key_replay.images-held"
        )
    return SeededClient(
        seen.client,
        seen.round,
        held,
        view.config.instahide,
        view.config.train,
        dropout,
    )


def _telling_label(view: AdversaryView, seen: Observation) -> tuple[int, Tensor | None]:
    """Return the row and the entries of the label that tells most, of the first few."""
    if seen.soft_targets is None:
        return 0, None
    first = min(len(seen.soft_targets), view.config.train.batch_size, ROWS)
    entries = [nonzero_entries(label) for label in seen.soft_targets[:first]]
    row = max(range(first), key=lambda at: len(entries[at]))
    return row, entries[row] if _told(view, entries[row]) else None


def _told(view: AdversaryView, entries: Tensor) -> int:
    """Return how many numbers in a label depend on the coefficients."""
    known = 0 if view.config.instahide.uses_pool else 1  # they sum to 1
    return max(0, len(entries) - known)


def _numbers_told(view: AdversaryView, seen: Observation) -> int:
    labels = [] if seen.soft_targets is None else list(seen.soft_targets)
    return sum(_told(view, nonzero_entries(label)) for label in labels)


def _mask_fits(seen: Observation, key: EncodingKey) -> bool:
    """Tell whether the masks of the first encodings make them smooth."""
    encodings = seen.encodings
    if encodings is None or key.sign_bits is None or len(encodings) < len(key):
        return False
    return mask_deviations(encodings[: len(key)], key.signs) > MASK_DEVIATIONS


def _chunks(first: int, count: int) -> Iterator[range]:
    for start in range(first, first + count, CHUNK):
        yield range(start, min(start + CHUNK, first + count))


def _opened(
    view: AdversaryView, keys: Keys, augmentation: Augmentation | None
) -> tuple[Recovered, ...]:
    """Return the private images of each client, from all its encodings together."""
    by_client: dict[str, list[tuple[Tensor, EncodingKey]]] = {}
    for seen in view.observations:
        key = keys.get((seen.round, seen.client))
        if key is not None and seen.encodings is not None:
            by_client.setdefault(seen.client, []).append((seen.encodings, key))
    recovered = []
    for client, parts in by_client.items():
        opened = open_encodings(
            torch.cat([encodings for encodings, _ in parts]),
            EncodingKey.concatenate([key for _, key in parts]),
            view.statistics,
            view.pool,
            augmentation,
        )
        recovered.append(Recovered(client, 0, opened.images, rows=opened.rows))
    return tuple(recovered)
