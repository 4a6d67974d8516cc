"""What an attack is: what it needs, what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from torch import Tensor

from instahide_fl.attacks.encoding_links import LinkedEncodings
from instahide_fl.config.base import Table
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView
from instahide_fl.types import EncodingKey

Advance: TypeAlias = Callable[[int, int], None]
"""Called with steps done and steps in all, for a progress bar."""


def silent(done: int, total: int) -> None:
    """Show nothing: for a step inside another attack."""


def continued(advance: Advance, before: int, parts: int) -> Advance:
    """Return what tells of one part's steps as of those of all.

    Args:
        advance: told of all.
        before: parts that are done.
        parts: in all, of as many steps each.
    """
    return lambda done, total: advance(before * total + done, parts * total)


Target: TypeAlias = Literal["encoding", "private", "labels", "statistics", "components"]


@dataclass(frozen=True)
class RankedComponents:
    """Public images that an attack takes to be in each encoding, the best first.

    Attributes:
        index: i64[E,m] into the pool.
        scores: f32[E,m], descending.
        pool_size: N, images that were ranked.
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
class Recovered:
    """What an attack recovered of one client.

    Attributes:
        client: its key.
        round: 1, 2, ...; 0 if several rounds were put together.
        images: f32[M,C,H,W], normalised as the client's are; None if none.
        soft_targets: f32[M,K], or of the batch as a whole f32[1,K]; None if none.
        classes: i64[M], hard labels; None if none.
        rows: i64[M], which images of the client these are, where the adversary knows
            (an auditor does); None to let the scorer match them.
        weights: f32[E,M], how much of each recovered image is in each of the client's
            encodings, as far as the attack knows; None if it does not say.
        statistics: of the batch, by layer, for instance "norm1.mean"; empty if none.
        components: rankings of the pool, by the score used; empty if none.
        diagnostics: numbers about how it went.
        links: which image it took each part of an encoding for; None if it was told, or
            did not ask.
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


@dataclass(frozen=True)
class Reconstruction:
    """What an attack returns.

    Attributes:
        target: what was recovered: encodings, private images, labels, statistics of
            batches, or which public images encodings mix.
        recovered: client by client.
        diagnostics: numbers about the attack as a whole.
        aligned: whether the attack looked for crops and mirroring, and undid them.
        keys: of all encodings of a client in a round, by round and client, as far as
            they were found; None if the attack looks for none.
    """

    target: Target
    recovered: tuple[Recovered, ...]
    diagnostics: dict[str, float] = field(default_factory=dict)
    aligned: bool = False
    keys: Mapping[tuple[int, str], EncodingKey] | None = None


class Attack(Table):
    """An attack with its settings; the fields of a subclass are its settings.

    `needs` and the texts are shown by `instahide-fl attack --list`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """What it recovers and how, in one line."""
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.PARAMETERS, Knowledge.UPDATES}
    )
    """What the threat model has to give; most attacks work on single updates."""
    on_aggregates: ClassVar[bool] = False
    """Whether aggregates of rounds do where single updates are withheld: all clients of
    a round are then attacked as one."""
    cost: ClassVar[str]
    """What it costs, in words."""
    source: ClassVar[str]
    """Where it was published."""
    by_default: ClassVar[bool] = True
    """Whether it runs where no attack is named: not if it takes minutes."""
    threat_model: ClassVar[str] = "honest-server"
    """The adversary that it is run as unless another is asked for."""
    no_control: ClassVar[str] = ""
    """Why it does not apply to a run that hides nothing; empty where it does."""

    @classmethod
    def __pydantic_init_subclass__(cls, **keywords: Any) -> None:
        """Call the table of settings what the attack is called."""
        cls.section = cls.name

    def check(self, view: AdversaryView) -> None:
        """Refuse an adversary who lacks what the attack needs.

        Raises:
            ThreatModelError: something is withheld.
        """
        view.require(self.name, self.needs, self.needs_instead())

    @classmethod
    def needs_instead(cls) -> frozenset[Knowledge] | None:
        """Return what it needs where single updates are withheld; None: no other."""
        if not cls.on_aggregates:
            return None
        return cls.needs - {Knowledge.UPDATES} | {Knowledge.AGGREGATE}

    @classmethod
    def needs_in_words(cls) -> str:
        """Return what it needs, for a list of attacks."""
        needs = ", ".join(sorted(cls.needs))
        return f"{needs} or {Knowledge.AGGREGATE}" if cls.on_aggregates else needs

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, advance: Advance
    ) -> Reconstruction:
        """Attack.

        Args:
            view: all that the adversary has; it was checked to contain `needs`.
            rng: for starting points and restarts.
            advance: told how far it is.

        Raises:
            AttackError: the attack does not apply to this run, and why.
        """
        raise NotImplementedError
