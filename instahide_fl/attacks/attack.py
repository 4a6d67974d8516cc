"""What an attack is: what it needs, what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from torch import Tensor

from instahide_fl.config.table import Table
from instahide_fl.transcript.threat_model import AdversaryView, Knowledge

Advance: TypeAlias = Callable[[int, int], None]
"""Called with steps done and steps in all, for a progress bar."""


def silent(done: int, total: int) -> None:
    """Show nothing: for a step inside another attack."""


def part_of(advance: Advance, number: int, parts: int) -> Advance:
    """Return a callback for one of several parts of the work, counted from 0."""
    return lambda done, total: advance(number * total + done, parts * total)


Target: TypeAlias = Literal[
    "encoding", "private", "labels", "statistics", "components", "mixture"
]


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
            (an auditor does); None to let the scorer match them. For mixtures, which
            encodings of the client and round they are of.
        statistics: of the batch, by layer, for instance "norm1.mean"; empty if none.
        components: rankings of the pool, by the score used; empty if none.
        diagnostics: numbers about how it went.
    """

    client: str
    round: int
    images: Tensor | None = None
    soft_targets: Tensor | None = None
    classes: Tensor | None = None
    rows: Tensor | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)
    components: dict[str, RankedComponents] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """What an attack returns.

    Attributes:
        target: what was recovered: encodings, private images, labels, statistics of
            batches, or which public images encodings mix, or
            mixtures without their masks.
        recovered: client by client.
        diagnostics: numbers about the attack as a whole.
    """

    target: Target
    recovered: tuple[Recovered, ...]
    diagnostics: dict[str, float] = field(default_factory=dict)


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
