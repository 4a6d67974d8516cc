"""Threat models: who knows which part of a run.

An attack works on an `AdversaryView` and on nothing else. A view is built from a run's
transcript and a threat model, and holds only what that threat model permits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from torch import Tensor

from instahide_fl.config import Config
from instahide_fl.data.federated import load_pool
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import AttackError, ConfigError, ThreatModelError
from instahide_fl.transcript.aggregate import (
    ALL_CLIENTS,
    expected_cohort,
    why_not_one,
)
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.truth import ClientTruth, clients_with_truth, read_truth
from instahide_fl.types import ChannelStatistics, EncodingKey, UpdateKind


class Knowledge(StrEnum):
    """Something that an adversary may know, beyond the run's settings and its code."""

    PARAMETERS = "parameters"
    UPDATES = "single updates of clients"
    BUFFERS = "running statistics of BatchNorm"
    AGGREGATE = "aggregates of rounds"
    CRAFTED = "a choice of the parameters that clients train on"
    POOL = "the public pool"
    LABELS = "soft labels"
    ENCODINGS = "encodings"
    MAPPING = "mapping and coefficients of the key"


@dataclass(frozen=True)
class ThreatModel:
    """An adversary.

    Attributes:
        name: as on the command line.
        who: in one sentence.
        knows: what it is given.
        ordinary: whether somebody in every federation, or everybody the encodings are
            released to, is in this position; an auditor is not.
    """

    name: str
    who: str
    knows: frozenset[Knowledge]
    ordinary: bool


_SEEN_BY_SERVER = frozenset(
    {
        Knowledge.PARAMETERS,
        Knowledge.UPDATES,
        Knowledge.BUFFERS,
        Knowledge.AGGREGATE,
        Knowledge.POOL,
    }
)
_SEEN_IN_SUMS = frozenset({Knowledge.PARAMETERS, Knowledge.AGGREGATE, Knowledge.POOL})

THREAT_MODELS: dict[str, ThreatModel] = {
    model.name: model
    for model in (
        ThreatModel(
            "honest-server",
            "The server follows the protocol and keeps what it receives.",
            _SEEN_BY_SERVER,
            ordinary=True,
        ),
        ThreatModel(
            "malicious-server",
            "The server sends parameters of its own choice and keeps what it receives.",
            _SEEN_BY_SERVER | {Knowledge.CRAFTED},
            ordinary=False,
        ),
        ThreatModel(
            "eavesdropper",
            "Somebody reads the messages between server and clients.",
            _SEEN_BY_SERVER - {Knowledge.POOL},
            ordinary=True,
        ),
        ThreatModel(
            "participant",
            "Another client, who receives the parameters of every round.",
            _SEEN_IN_SUMS,
            ordinary=True,
        ),
        ThreatModel(
            "secure-aggregation-server",
            "The server under secure aggregation, which learns sums of updates only.",
            _SEEN_IN_SUMS,
            ordinary=True,
        ),
        ThreatModel(
            "encodings-holder",
            "Somebody who was given the encodings with their soft labels, to train on.",
            frozenset({Knowledge.ENCODINGS, Knowledge.LABELS, Knowledge.POOL}),
            ordinary=True,
        ),
        ThreatModel(
            "label-holder",
            "The honest server, and it knows the soft labels of each update.",
            _SEEN_BY_SERVER | {Knowledge.LABELS},
            ordinary=False,
        ),
        ThreatModel(
            "auditor",
            "Sees what the server sees and is given mapping, coefficients and labels: "
            "an upper bound, not a likely adversary.",
            _SEEN_BY_SERVER | {Knowledge.LABELS, Knowledge.MAPPING},
            ordinary=False,
        ),
        ThreatModel(
            "auditor-of-encodings",
            "Holds the encodings and is given mapping, coefficients and labels.",
            frozenset(
                {
                    Knowledge.ENCODINGS,
                    Knowledge.LABELS,
                    Knowledge.MAPPING,
                    Knowledge.POOL,
                }
            ),
            ordinary=False,
        ),
    )
}


def threat_model(name: str) -> ThreatModel:
    """Return the threat model of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in THREAT_MODELS:
        raise ConfigError(
            f"--threat-model must be one of {', '.join(THREAT_MODELS)}, got {name!r}"
        )
    return THREAT_MODELS[name]


@dataclass(frozen=True)
class KnownMapping:
    """Which private images a client mixed, and how: part of its keys.

    Attributes:
        private_index: i64[E,p] into the client's images.
        coefficients: f32[E,k], private images first.
        public_index: i64[E,k-p] into the pool; None for who does not know the pool.
    """

    private_index: Tensor
    coefficients: Tensor
    public_index: Tensor | None = None


@dataclass(frozen=True)
class Observation:
    """One client in one round, as far as the adversary knows.

    Where only aggregates are seen, all clients of a round stand for one.

    Attributes:
        round: 1, 2, ...
        client: its key; `ALL_CLIENTS` for an aggregate.
        num_examples: images that the update was computed on; 0 if unknown.
        learning_rate_factor: of the schedule, in mode update.
        kind: what an update is: "gradient" of the mean loss, or "delta".
        parameters: what the client was sent, by name, or None. Running statistics of
            BatchNorm are among them only where they are known.
        update: what the client sent, by name, or None; as for `parameters`.
        batch_sizes: of the client's steps, which follow from the settings.
        encodings: f32[E,C,H,W], normalised, or None.
        soft_targets: f32[E,K], or None.
        mapping: part of the keys, or None.
        images_held: by the client, which it tells the server, and a release of
            encodings says; 0 if unknown.
        clients: whose updates are in it.
    """

    round: int
    client: str
    num_examples: int
    learning_rate_factor: float
    kind: UpdateKind
    parameters: Mapping[str, Tensor] | None = None
    update: Mapping[str, Tensor] | None = None
    batch_sizes: tuple[int, ...] = ()
    encodings: Tensor | None = None
    soft_targets: Tensor | None = None
    mapping: KnownMapping | None = None
    images_held: int = 0
    clients: int = 1

    @property
    def who(self) -> str:
        """Who sent the update, in words."""
        if self.client != ALL_CLIENTS:
            return f"client {self.client}"
        if self.clients == 1:
            return "the only client of the round"
        return f"the {self.clients} clients of the round together"


@dataclass(frozen=True)
class ObservedRound:
    """A round as everybody who receives the parameters sees it.

    Attributes:
        round: 1, 2, ...
        parameters: sent, by name.
        aggregate: mean of the updates, by name.
        kind: what the updates are: "gradient" or "delta".
        clients: whose updates are in the aggregate.
        num_examples: images that they were computed on, of all clients together.
        learning_rate_factor: of the schedule, in mode update.
    """

    round: int
    parameters: Mapping[str, Tensor]
    aggregate: Mapping[str, Tensor]
    kind: UpdateKind
    clients: int
    num_examples: int
    learning_rate_factor: float

    def as_one_client(self, config: Config) -> Observation:
        """Return the round as if one client had trained on all images.

        Args:
            config: the run's settings, for which `why_not_one` has no objection.
        """
        return Observation(
            round=self.round,
            client=ALL_CLIENTS,
            num_examples=self.num_examples,
            learning_rate_factor=self.learning_rate_factor,
            kind=self.kind,
            parameters=self.parameters,
            update=self.aggregate,
            batch_sizes=step_sizes(config, self.num_examples),
            clients=self.clients,
        )


@dataclass(frozen=True)
class AdversaryView:
    """What an adversary has: all that an attack may use.

    Attributes:
        threat_model: which adversary.
        config: the run's settings, which both sides of a federation know, but for the
            seed: that of a simulation is withheld (0), as it is all of its keys.
        statistics: constants that private images are normalised with.
        image_shape: C, H, W.
        num_classes: K.
        observations: clients in rounds, in this order. Of an adversary who sees no
            single client: the aggregates, each as if one client had sent it; empty if
            they cannot be read so.
        rounds: aggregates; empty if the adversary sees none.
        pool: the public images; None if unknown, or if encodings use none.
    """

    threat_model: ThreatModel
    config: Config
    statistics: ChannelStatistics
    image_shape: tuple[int, int, int]
    num_classes: int
    observations: tuple[Observation, ...]
    rounds: tuple[ObservedRound, ...]
    pool: MixingPool | None

    def require(
        self,
        attack: str,
        needs: Iterable[Knowledge],
        or_else: Iterable[Knowledge] | None = None,
    ) -> None:
        """Check that the threat model gives what an attack needs.

        Args:
            attack: its name.
            needs: what it cannot do without.
            or_else: what it can also do with; None for nothing else.

        Raises:
            ThreatModelError: something is withheld.
            AttackError: only aggregates are left to attack, and they are not what one
                client would have sent.
        """
        knows = self.threat_model.knows
        ways = [set(needs)] + ([] if or_else is None else [set(or_else)])
        possible = [way for way in ways if way <= knows]
        if not possible:
            able = [
                model.name
                for model in THREAT_MODELS.values()
                if any(way <= model.knows for way in ways)
            ]
            raise ThreatModelError(
                f"attack {attack} needs {', '.join(sorted(ways[0] - knows))}, which "
                f"the threat model {self.threat_model.name} withholds: choose one that "
                f"has it ({', '.join(able)})"
            )
        if Knowledge.AGGREGATE in possible[0] and Knowledge.UPDATES not in knows:
            self._require_one_client(attack)

    def _require_one_client(self, attack: str) -> None:
        for one in self.rounds:
            if reason := why_not_one(self.config, one.clients):
                raise AttackError(
                    f"attack {attack} cannot use the aggregate of round {one.round}: "
                    f"{reason}"
                )


def build_view(
    model: ThreatModel,
    config: Config,
    transcripts: Sequence[RoundTranscript],
    truths: Mapping[tuple[int, str], ClientTruth],
    buffers: Iterable[str],
) -> AdversaryView:
    """Copy what a threat model permits.

    Args:
        model: the adversary.
        config: the run's settings.
        transcripts: recorded rounds, at least one.
        truths: by round and client; opened only for what no server sees. May be empty
            if the threat model gives nothing of it.
        buffers: names of the network's running statistics among its arrays.

    Raises:
        ThreatModelError: the threat model gives what `truths` lacks.
        PoolError: the pool is missing or does not fit the images.
    """
    knows, hidden = model.knows, set(buffers)
    if Knowledge.BUFFERS in knows:
        hidden = set()
    first = transcripts[0]
    observations: list[Observation] = []
    if Knowledge.UPDATES in knows and not all(one.updates for one in transcripts):
        raise ThreatModelError(
            f"the threat model {model.name} gives single updates, and the server of "
            f"this run saw sums only (secure-aggregation.enabled): choose "
            f"secure-aggregation-server"
        )
    if knows & {Knowledge.UPDATES, Knowledge.ENCODINGS}:
        for seen in transcripts:
            for client in seen.updates or _clients_of(truths, seen.round):
                truth = truths.get((seen.round, client))
                observations.append(
                    _observe(model, config, seen, client, truth, hidden)
                )
    rounds = [
        _observe_round(config, seen, hidden)
        for seen in transcripts
        if {Knowledge.PARAMETERS, Knowledge.AGGREGATE} <= knows
    ]
    if Knowledge.UPDATES not in knows:
        observations += [
            one.as_one_client(config)
            for one in rounds
            if not why_not_one(config, one.clients)
        ]
    pool = load_pool(config, first.image_shape) if Knowledge.POOL in knows else None
    return AdversaryView(
        model,
        config.with_values({"seed": 0}),
        first.statistics,
        first.image_shape,
        first.num_classes,
        tuple(observations),
        tuple(rounds),
        pool,
    )


def _observe(
    model: ThreatModel,
    config: Config,
    seen: RoundTranscript,
    client: str,
    truth: ClientTruth | None,
    hidden: set[str],
) -> Observation:
    knows = model.knows
    update = seen.updates[client] if Knowledge.UPDATES in knows else None
    secret = knows & {Knowledge.ENCODINGS, Knowledge.LABELS, Knowledge.MAPPING}
    if secret and truth is None:
        raise ThreatModelError(
            f"the threat model {model.name} gives {', '.join(sorted(secret))}, which "
            f"only a simulation knows: run it with --set record.truth=true"
        )
    parameters = None
    if Knowledge.PARAMETERS in knows:
        parameters = _without(seen.parameters, hidden)
    examples = update.num_examples if update else 0
    return Observation(
        round=seen.round,
        client=client,
        num_examples=examples,
        learning_rate_factor=seen.learning_rate_factor,
        kind=seen.kind,
        parameters=parameters,
        update=_without(update.arrays, hidden) if update else None,
        batch_sizes=step_sizes(config, examples),
        encodings=truth.encodings if truth and Knowledge.ENCODINGS in secret else None,
        soft_targets=truth.soft_targets
        if truth and Knowledge.LABELS in secret
        else None,
        mapping=_known_mapping(truth.key, knows)
        if truth and Knowledge.MAPPING in secret
        else None,
        images_held=seen.images_held.get(client, 0),
    )


def _known_mapping(key: EncodingKey, knows: frozenset[Knowledge]) -> KnownMapping:
    # Rows of a pool that one does not have are numbers without a meaning.
    public = key.public_index if Knowledge.POOL in knows else None
    return KnownMapping(key.private_index, key.coefficients, public)


def _observe_round(
    config: Config, seen: RoundTranscript, hidden: set[str]
) -> ObservedRound:
    sizes = [one.num_examples for one in seen.updates.values()]
    # Whoever averages a sum divides by the images in it.
    clients, images = (len(sizes), sum(sizes)) if sizes else expected_cohort(config)
    return ObservedRound(
        round=seen.round,
        parameters=_without(seen.parameters, hidden),
        aggregate=_without(seen.aggregate, hidden),
        kind=seen.kind,
        clients=clients,
        num_examples=images,
        learning_rate_factor=seen.learning_rate_factor,
    )


def step_sizes(config: Config, num_examples: int) -> tuple[int, ...]:
    """Return the batch sizes of a client's steps, which follow from the settings.

    Args:
        config: the run's settings.
        num_examples: images that the update was computed on.

    Returns:
        In mode gradient one size, all images; in mode update one for each local step.
    """
    if config.train.mode == "gradient":
        return (num_examples,)
    size = config.train.batch_size
    epoch = [min(size, num_examples - at) for at in range(0, num_examples, size)]
    return tuple(epoch * config.train.local_epochs)


def read_truths(
    folder: Path, transcripts: Sequence[RoundTranscript]
) -> dict[tuple[int, str], ClientTruth]:
    """Read the truth of recorded rounds, where it was written.

    Of a round whose transcript holds the sum alone, that of all clients is read.

    Raises:
        TranscriptError: a file is damaged.
    """
    return {
        (seen.round, client): read_truth(folder, seen.round, client)
        for seen in transcripts
        for client in clients_with_truth(folder, seen.round)
        if client in seen.updates or not seen.updates
    }


def _clients_of(
    truths: Mapping[tuple[int, str], ClientTruth], round_number: int
) -> list[str]:
    return [client for number, client in truths if number == round_number]


def _without(arrays: Mapping[str, Tensor], hidden: set[str]) -> dict[str, Tensor]:
    return {name: array for name, array in arrays.items() if name not in hidden}
