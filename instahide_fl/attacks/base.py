"""The interface of an attack: what it needs and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from torch import Tensor

from instahide_fl.attacks.encoding_links import LinkedEncodings
from instahide_fl.config import Config, Scalar
from instahide_fl.config.base import Table
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView
from instahide_fl.types import EncodingKey

ProgressCallback: TypeAlias = Callable[[int, int], None]
"""Called with the steps done so far and the total number of steps."""


def ignore_progress(completed: int, total: int) -> None:
    """Show no progress; the callback of a step inside another attack."""


def scale_progress(
    progress: ProgressCallback, parts_done: int, num_parts: int
) -> ProgressCallback:
    """Return a callback for one part of the work that reports on all of it.

    Args:
        progress: The callback for all parts together.
        parts_done: The number of parts that are done already.
        num_parts: The number of parts, each taken to have as many steps.
    """

    def report(completed: int, total: int) -> None:
        progress(parts_done * total + completed, num_parts * total)

    return report


Target: TypeAlias = Literal[
    "encoding", "private", "labels", "statistics", "components", "membership"
]


@dataclass(frozen=True)
class RankedComponents:
    """The public images that an attack takes to be in each encoding, best first.

    Attributes:
        index: i64[E,m], the rows of the pool.
        scores: f32[E,m], the score of each image, descending.
        pool_size: The number N of images that were ranked.
    """

    index: Tensor
    scores: Tensor
    pool_size: int

    def rows(self, start: int, stop: int) -> RankedComponents:
        """Return the rankings of the encodings start..stop-1."""
        return RankedComponents(
            self.index[start:stop], self.scores[start:stop], self.pool_size
        )


@dataclass(frozen=True)
class MixtureGuess:
    """How likely each of M candidates is to be in the encodings of a client.

    Attributes:
        encodings: i64[E], which encodings of the client were looked at, in the order of
            rounds.
        scores: f32[E,M], the score in each of them, higher for likelier.
        together: f32[M], the score in all of them together.
    """

    encodings: Tensor
    scores: Tensor
    together: Tensor


@dataclass(frozen=True)
class Recovered:
    """What an attack recovered of one client.

    Attributes:
        client: The key of the client.
        round: The round, 1, 2, ...; 0 if several rounds were put together.
        images: f32[M,C,H,W], normalised as the client's images are; None if none.
        soft_targets: f32[M,K], or f32[1,K] for the batch as a whole; None if none.
        classes: i64[M], hard labels; None if none.
        rows: i64[M], which images of the client these are, where the adversary knows
            it (an auditor does); None to let the scorer match them.
        weights: f32[E,M], how much of each recovered image is in each of the client's
            encodings, as far as the attack knows; None if it does not say.
        statistics: Statistics of the batch by layer, for instance "norm1.mean"; empty
            if none.
        components: Rankings of the pool by the score used; empty if none.
        diagnostics: Numbers about how the attack went.
        links: Which image the attack assigned to each class of each encoding; None
            if the mapping was given to it, or it did not look for one.
        mixture: Which candidates the encodings mix; None if the attack does not ask.
    """

    client: str
    round: int
    images: Tensor | None = None
    soft_targets: Tensor | None = None
    classes: Tensor | None = None
    rows: Tensor | None = None
    weights: Tensor | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)
    components: dict[str, RankedComponents] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)
    links: LinkedEncodings | None = None
    mixture: MixtureGuess | None = None


@dataclass(frozen=True)
class ClientScores:
    """How likely each candidate is to be an image of each client.

    Attributes:
        clients: The keys of C clients.
        scores: f64[C,n], higher for likelier.
    """

    clients: tuple[str, ...]
    scores: Tensor


@dataclass(frozen=True)
class MembershipGuess:
    """How likely an attack takes the first n candidates to be members.

    Attributes:
        scores: f64[n] by the name of the score, higher for likelier members.
        decided_by: The name of the score that is reported first.
        by_round: f64[n], a score from a round alone, by its number; may be empty.
        by_client: The scores of single clients, by the name of the score; may be empty.
    """

    scores: Mapping[str, Tensor]
    decided_by: str
    by_round: Mapping[int, Tensor] = field(default_factory=dict)
    by_client: Mapping[str, ClientScores] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """What an attack returns.

    Attributes:
        target: The kind of secret that was recovered: encodings, private images,
            labels, statistics of batches, the public images that encodings mix, or
            who was trained on.
        recovered: One entry for each client, or each client and round.
        diagnostics: Numbers about the attack as a whole.
        aligned: Whether the attack looked for crops and mirroring, and undid them.
        keys: The keys of all encodings of a client in a round, by round and client,
            as far as they were found; None if the attack looks for none.
        adaptation: What the attack made of the run's defence, as the entry "adaptive"
            of its JSON; empty if it does not say.
        membership: Scores of the candidates; None if the attack asks another question.
    """

    target: Target
    recovered: tuple[Recovered, ...]
    diagnostics: dict[str, float] = field(default_factory=dict)
    aligned: bool = False
    keys: Mapping[tuple[int, str], EncodingKey] | None = None
    adaptation: Mapping[str, Any] = field(default_factory=dict)
    membership: MembershipGuess | None = None


class Attack(Table):
    """Base class of attacks; the fields of a subclass are the attack's settings.

    `instahide-fl attack --list` shows `needs`, `summary`, `cost` and `source`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """What the attack recovers and how, in one line."""
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.PARAMETERS, Knowledge.UPDATES}
    )
    """What the threat model must give; most attacks work on single updates."""
    on_aggregates: ClassVar[bool] = False
    """Whether the aggregate of a round serves where single updates are withheld: all
    clients of the round are then attacked as one."""
    cost: ClassVar[str]
    """What the attack costs, in words."""
    source: ClassVar[str]
    """Where the attack was published."""
    by_default: ClassVar[bool] = True
    """Whether the attack runs where none is named; false if it takes minutes."""
    threat_model: ClassVar[str] = "honest-server"
    """The threat model it runs under unless another is asked for."""
    quick: ClassVar[Mapping[str, Scalar]] = MappingProxyType({})
    """The settings of a study whose attacks are to be quick, where they are not the
    defaults."""
    no_reference: ClassVar[str] = ""
    """Why it has no undefended reference, a run that hides nothing; empty if it has."""

    @classmethod
    def __pydantic_init_subclass__(cls, **keywords: Any) -> None:
        """Call the table of settings what the attack is called."""
        cls.section = cls.name

    def check(self, view: AdversaryView) -> None:
        """Refuse an adversary who lacks what the attack needs.

        Raises:
            ThreatModelError: The threat model withholds something.
        """
        view.require(self.name, self.needs, self.needs_on_aggregates())

    @classmethod
    def runs_by_default(cls, config: Config) -> bool:
        """Tell whether the attack runs on a run where none is named.

        Args:
            config: The settings of what is attacked.
        """
        return cls.by_default

    @classmethod
    def needs_on_aggregates(cls) -> frozenset[Knowledge] | None:
        """Return what the attack needs where single updates are withheld.

        None if it cannot do without them.
        """
        if not cls.on_aggregates:
            return None
        return cls.needs - {Knowledge.UPDATES} | {Knowledge.AGGREGATE}

    @classmethod
    def needs_in_words(cls) -> str:
        """Return what the attack needs, for a list of attacks."""
        needs = ", ".join(sorted(cls.needs))
        return f"{needs} or {Knowledge.AGGREGATE}" if cls.on_aggregates else needs

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Run the attack.

        Args:
            view: All that the adversary has; checked to contain `needs`.
            rng: The generator of starting points and restarts.
            progress: The callback told how far the attack is.

        Raises:
            AttackError: The attack does not apply to this run; the text says why.
        """
        raise NotImplementedError
