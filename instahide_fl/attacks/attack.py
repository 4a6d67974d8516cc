"""What an attack is: what it needs, what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from torch import Tensor

from instahide_fl.attacks.links import LinkedEncodings
from instahide_fl.config.table import Table
from instahide_fl.transcript.threat_model import AdversaryView, Knowledge

Advance: TypeAlias = Callable[[int, int], None]
"""Called with steps done and steps in all, for a progress bar."""


def silent(done: int, total: int) -> None:
    """Show nothing: for a step inside another attack."""


Target: TypeAlias = Literal["encoding", "private", "labels", "statistics"]


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
        statistics: of the batch, by layer, for instance "norm1.mean"; empty if none.
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
    statistics: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)
    links: LinkedEncodings | None = None


@dataclass(frozen=True)
class Reconstruction:
    """What an attack returns.

    Attributes:
        target: what was recovered: encodings, private images, labels, or statistics of
            batches.
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
