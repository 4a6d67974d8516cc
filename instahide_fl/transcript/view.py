"""The view of an adversary: all that an attack may use of a run.

An attack works on an `AdversaryView` and on nothing else. `build_view` makes one from a
run's transcript; only what the threat model permits is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from instahide_fl.config import Config
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import AttackError, ThreatModelError
from instahide_fl.transcript.aggregate import ALL_CLIENTS, why_not_as_one_client
from instahide_fl.transcript.candidates import CandidateImages
from instahide_fl.transcript.threat_model import THREAT_MODELS, Knowledge, ThreatModel
from instahide_fl.types import ChannelStatistics, UpdateKind


@dataclass(frozen=True)
class KnownMapping:
    """Which private images a client mixed, and how: part of its keys.

    Attributes:
        private_index: i64[E,p] into the client's images.
        coefficients: f32[E,k], private images first.
        public_index: i64[E,k-p] into the pool; None for an adversary who does not know
            the pool.
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
        client: The client's key; `ALL_CLIENTS` for an aggregate.
        num_examples: The number of images that the update was computed on; 0 if
            unknown.
        learning_rate_factor: The factor of the schedule, in mode update.
        kind: What an update is: "gradient" of the mean loss, or "delta".
        parameters: The parameters that the client was sent, by name, or None. Running
            statistics of BatchNorm are among them only where they are known.
        update: The arrays that the client sent, by name, or None. Running statistics
            are among them only where they are known.
        batch_sizes: The batch size of each of the client's steps, which follows from
            the settings.
        encodings: f32[E,C,H,W], normalised, or None.
        soft_targets: f32[E,K], or None.
        mapping: The part of the keys that is known, or None.
        images_held: The number of images that the client holds, which it tells the
            server, and a release of encodings says; 0 if unknown.
        clients: The number of clients whose updates are in it.
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
        parameters: The parameters sent, by name.
        aggregate: The mean of the updates, by name.
        kind: What the updates are: "gradient" or "delta".
        clients: The number of clients whose updates are in the aggregate.
        num_examples: The number of images that they were computed on, of all clients
            together.
        learning_rate_factor: The factor of the schedule, in mode update.
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
            config: The run's settings; `why_not_as_one_client` has no objection to
                them.
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
        threat_model: The adversary.
        config: The run's settings, which both sides of a federation know. The seed of a
            simulation is withheld (0): all of its keys follow from it.
        statistics: Constants that private images are normalised with.
        image_shape: C, H, W.
        num_classes: K.
        observations: The clients of each round, in the order of rounds. For an
            adversary who sees no single client: the aggregates, each as if one client
            had sent it; empty if they cannot be read so.
        rounds: The aggregates; empty if the adversary sees none.
        pool: The public images; None if unknown, or if encodings use none.
        candidates: Images of which some were trained on and some were held out, which
            attacks on membership are asked about; None if nothing was held out.
        mixed_candidates: Images of which some are in the encodings and no client
            trained on the others, which attacks on encodings are asked about; None
            without encodings, or without other images.
    """

    threat_model: ThreatModel
    config: Config
    statistics: ChannelStatistics
    image_shape: tuple[int, int, int]
    num_classes: int
    observations: tuple[Observation, ...]
    rounds: tuple[ObservedRound, ...]
    pool: MixingPool | None
    candidates: CandidateImages | None = None
    mixed_candidates: CandidateImages | None = None

    def require(
        self,
        attack: str,
        needs: Iterable[Knowledge],
        or_else: Iterable[Knowledge] | None = None,
    ) -> None:
        """Check that the threat model gives what an attack needs.

        Args:
            attack: The attack's name.
            needs: The knowledge that it cannot do without.
            or_else: The knowledge that does instead; None if nothing does.

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
        for observed in self.rounds:
            if reason := why_not_as_one_client(self.config, observed.clients):
                raise AttackError(
                    f"attack {attack} cannot use the aggregate of round "
                    f"{observed.round}: {reason}"
                )


def step_sizes(config: Config, num_examples: int) -> tuple[int, ...]:
    """Return the batch sizes of a client's steps, which follow from the settings.

    Args:
        config: The run's settings.
        num_examples: The number of images that the update was computed on.

    Returns:
        In mode gradient one size, all images; in mode update one size for each local
        step.
    """
    if config.train.mode == "gradient":
        return (num_examples,)
    size = config.train.batch_size
    starts = range(0, num_examples, size)
    epoch = [min(size, num_examples - start) for start in starts]
    return tuple(epoch * config.train.local_epochs)
