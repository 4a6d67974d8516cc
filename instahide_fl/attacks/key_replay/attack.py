"""Search for the seed that a simulation's keys were drawn from, and replay them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    Recovered,
)
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
MAX_LABELS = 16  # labels of the first batch, of which the most informative is taken
MAX_CHANCE = 1e-4  # probability that a number in a label fits wrong coefficients
MAX_FALSE_ALARMS = 0.01  # expected number of seeds that fit by chance

Keys: TypeAlias = dict[tuple[int, str], EncodingKey]


class KeyReplay(Attack):
    """Try seeds one after another until their keys fit what was observed."""

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
    no_reference: ClassVar[str] = "a run that hides nothing has no keys"
    threat_model: ClassVar[str] = "encodings-holder"

    first: CountOrZero = 0
    """The seed to begin with."""
    seeds: Count = 100_000
    """The number of seeds to try, one after another."""
    images_held: CountOrZero = 0
    """The number of images that each client holds, for transcripts that do not say; 0
    takes the number from the transcript."""

    def check(self, view: AdversaryView) -> None:
        """Refuse an adversary who has neither labels nor updates to read them from.

        Raises:
            ThreatModelError: both are withheld.
        """
        if Knowledge.UPDATES not in view.threat_model.knows:
            super().check(view)

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Search for the seed, and open the encodings with the keys that it gives.

        Args:
            view: The adversary's view, with encodings, or with updates of single
                images, which give soft labels away.
            rng: An unused generator.
            progress: The callback for progress, in seeds tried.

        Raises:
            AttackError: the run draws no keys, or the view shows nothing to compare
                keys with.
        """
        evidence = _Evidence.of(view, self.images_held, self.seeds)
        start = time.perf_counter()
        seed, tried = None, 0
        for chunk in _chunks(self.first, self.seeds):
            seed = next(filter(evidence.confirms, evidence.candidates(chunk)), None)
            tried += len(chunk) if seed is None else seed - chunk[0] + 1
            progress(self.seeds if seed is not None else tried, self.seeds)
            if seed is not None:
                break
        rate = tried / max(1e-9, time.perf_counter() - start)
        diagnostics = {"seeds_tried": float(tried), "seeds_per_second": round(rate)}
        keys: Keys = {}
        if seed is not None:
            keys = evidence.keys(seed)
            diagnostics["seed"] = float(seed)
        diagnostics["keys_found"] = float(sum(map(len, keys.values())))
        recovered = _open_clients(view, keys, evidence.augmentation)
        return Reconstruction("private", recovered, diagnostics, keys=keys)


@dataclass(frozen=True)
class _Evidence:
    """What the keys of a candidate seed are compared with.

    Attributes:
        view: The adversary's view.
        clients: Each client and round, with what was observed of it.
        augmentation: The augmentation of private images before mixing; None for none.
        row: The row of the first client's first batch whose label tells most.
        entries: The entries of that label that are not 0, f32[m]; None if no label
            tells anything.
        labels_decide: Whether labels alone rule out all wrong seeds, so that no mask
            has to be compared.
    """

    view: AdversaryView
    clients: Sequence[tuple[SeededClient, Observation]]
    augmentation: Augmentation | None
    row: int
    entries: Tensor | None
    labels_decide: bool

    @classmethod
    def of(cls, view: AdversaryView, images_held: int, seeds: int) -> _Evidence:
        """Collect the evidence in a view.

        Args:
            view: The adversary's view.
            images_held: The number of images of each client; 0 takes it from the view.
            seeds: The number of seeds that will be tried.

        Raises:
            AttackError: the run draws no keys, or the view shows nothing to compare
                keys with.
        """
        _check_keys(view)
        observations = [o for o in view.observations if _has_evidence(o)]
        if not observations:
            with_labels = with_recovered_labels(view, adaptive=False)
            observations = [o for o in with_labels.observations if _has_evidence(o)]
        if not observations:
            raise AttackError(
                f"key_replay compares keys with encodings or soft labels, and the "
                f"threat model {view.threat_model.name} gives neither, nor updates of "
                f"single images: use encodings-holder, or record a run with "
                f"train.batch-size = 1 and train.local-batches = 1"
            )
        model = build_network(view.config, view.image_shape, view.num_classes)
        clients = [
            (_seeded(view, observation, images_held, has_dropout(model)), observation)
            for observation in observations
        ]
        row, entries = _most_informative_label(view, observations[0])
        false_alarms = seeds * MAX_CHANCE ** _label_numbers(view, observations[0])
        evidence = cls(
            view=view,
            clients=clients,
            augmentation=augmentation_for(view.config.data, view.image_shape),
            row=row,
            entries=entries,
            labels_decide=false_alarms <= MAX_FALSE_ALARMS,
        )
        evidence._check_enough()
        return evidence

    def candidates(self, seeds: Sequence[int]) -> Iterator[int]:
        """Yield the seeds that pass a fast test: one label, or one batch's masks."""
        client, observation = self.clients[0]
        if self.entries is not None:
            private = self.view.config.instahide.private_count
            drawn = [client.coefficients(seed, self.row) for seed in seeds]
            fits = coefficients_fit(torch.stack(drawn)[:, :private], self.entries)
            yield from (seeds[at] for at in fits.nonzero()[:, 0].tolist())
            return
        for seed in seeds:
            key = self._key(client, seed, batches=1)
            if _mask_fits(observation, key):
                yield seed

    def confirms(self, seed: int) -> bool:
        """Tell whether a seed's keys fit everything observed of the first client."""
        client, observation = self.clients[0]
        return self._fitting_key(client, observation, seed) is not None

    def keys(self, seed: int) -> Keys:
        """Return the keys of all clients and rounds that a seed fits."""
        keys = {
            (observation.round, observation.client): self._fitting_key(
                client, observation, seed
            )
            for client, observation in self.clients
        }
        return {where: key for where, key in keys.items() if key is not None}

    def _fitting_key(
        self, client: SeededClient, observation: Observation, seed: int
    ) -> EncodingKey | None:
        """Return a seed's keys if they fit everything observed of a client."""
        key = self._key(client, seed)
        if observation.soft_targets is not None:
            if len(observation.soft_targets) != len(key):
                return None
            private = key.coefficients[:, : key.private_index.shape[1]]
            for row, label in enumerate(observation.soft_targets):
                if not coefficients_fit(private[row : row + 1], nonzero_entries(label)):
                    return None
        if self.labels_decide or _mask_fits(observation, key):
            return key
        return None

    def _key(self, client: SeededClient, seed: int, batches: int = -1) -> EncodingKey:
        view = self.view
        return client.key(seed, view.image_shape, view.pool, self.augmentation, batches)

    def _check_enough(self) -> None:
        """Refuse evidence that several seeds would fit by chance.

        Raises:
            AttackError: there are no masks to compare, and too few labels.
        """
        _, observation = self.clients[0]
        has_masks = self.view.config.instahide.method == "instahide"
        if self.labels_decide or (has_masks and observation.encodings is not None):
            return
        raise AttackError(
            f"key_replay: the {_label_numbers(self.view, observation)} numbers that "
            f"the soft labels of client {observation.client} in round "
            f"{observation.round} tell of its keys fit several seeds by chance: try "
            f"fewer seeds, or record larger batches"
        )


def _check_keys(view: AdversaryView) -> None:
    """Refuse a view in which there is nothing to find.

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


def _has_evidence(observation: Observation) -> bool:
    return observation.encodings is not None or observation.soft_targets is not None


def _seeded(
    view: AdversaryView, observation: Observation, images_held: int, dropout: bool
) -> SeededClient:
    images_held = images_held or observation.images_held
    if images_held < view.config.instahide.private_count:
        raise AttackError(
            f"key_replay needs to know how many images client {observation.client} "
            f"holds, and the transcript does not say: set key_replay.images-held"
        )
    return SeededClient(
        client=observation.client,
        round=observation.round,
        images_held=images_held,
        encoder=view.config.instahide,
        train=view.config.train,
        has_dropout=dropout,
    )


def _most_informative_label(
    view: AdversaryView, observation: Observation
) -> tuple[int, Tensor | None]:
    """Return the row and the entries of the label that tells most, of the first few."""
    if observation.soft_targets is None:
        return 0, None
    count = min(len(observation.soft_targets), view.config.train.batch_size, MAX_LABELS)
    entries = [nonzero_entries(label) for label in observation.soft_targets[:count]]
    row = max(range(count), key=lambda candidate: len(entries[candidate]))
    return row, entries[row] if _free_entries(view, entries[row]) else None


def _free_entries(view: AdversaryView, entries: Tensor) -> int:
    """Return how many entries of a label can vary with the coefficients."""
    # Private coefficients sum to 1 where nothing else is mixed: the last one follows.
    determined = 0 if view.config.instahide.uses_pool else 1
    return max(0, len(entries) - determined)


def _label_numbers(view: AdversaryView, observation: Observation) -> int:
    """Return how many numbers all labels of an observation tell of its keys."""
    labels = [] if observation.soft_targets is None else list(observation.soft_targets)
    return sum(_free_entries(view, nonzero_entries(label)) for label in labels)


def _mask_fits(observation: Observation, key: EncodingKey) -> bool:
    """Tell whether a key's masks make the encodings that they are for smooth."""
    encodings = observation.encodings
    if encodings is None or key.sign_bits is None or len(encodings) < len(key):
        return False
    return mask_deviations(encodings[: len(key)], key.signs) > MASK_DEVIATIONS


def _chunks(first: int, count: int) -> Iterator[range]:
    for start in range(first, first + count, CHUNK):
        yield range(start, min(start + CHUNK, first + count))


def _open_clients(
    view: AdversaryView, keys: Keys, augmentation: Augmentation | None
) -> tuple[Recovered, ...]:
    """Return each client's private images, from all its encodings together."""
    by_client: dict[str, list[tuple[Tensor, EncodingKey]]] = {}
    for observation in view.observations:
        key = keys.get((observation.round, observation.client))
        if key is not None and observation.encodings is not None:
            parts = by_client.setdefault(observation.client, [])
            parts.append((observation.encodings, key))
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
