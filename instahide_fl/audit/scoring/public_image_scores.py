"""Scoring a search for public images against the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import RankedComponents
from instahide_fl.attacks.pool_search.attack import RANKED
from instahide_fl.audit.scoring.ground_truth import RecoveredClient
from instahide_fl.errors import ShapeError
from instahide_fl.transcript.truth import ClientTruth

FIRST = 10  # matches are looked at for the largest component
SIGNIFICANCE = 0.001
"""Probability of as many hits by chance, at most."""
TIMES_CHANCE = 2.0
"""Share of hits, in units of chance, at least."""
SHOWN = 8  # encodings that are drawn


@dataclass(frozen=True)
class ComponentScores:
    """How well a search found the public images of encodings.

    Attributes:
        ranks: i64[E,q], the position of each true public image in the ranking, from 0;
            at least `pool_size` if it was not returned. The largest coefficient first.
        pool_size: N.
    """

    ranks: Tensor
    pool_size: int

    def __add__(self, other: ComponentScores) -> ComponentScores:
        if self.pool_size != other.pool_size:
            raise ShapeError(
                f"rankings of pools of {self.pool_size} and {other.pool_size} images "
                f"cannot be scored together"
            )
        return ComponentScores(torch.cat([self.ranks, other.ranks]), self.pool_size)

    @property
    def encodings(self) -> int:
        """The number of encodings that were searched."""
        return len(self.ranks)

    def recall(self, first: int) -> float:
        """Return the share of the true public images among the best `first`."""
        return float((self.ranks < first).double().mean())

    def largest(self, first: int = FIRST) -> float:
        """Return how often the one of largest coefficient is among the best `first`."""
        return float((self.ranks[:, 0] < first).double().mean())

    def chance(self, first: int) -> float:
        """Return what a random order of the pool reaches, for recall and largest."""
        return min(1.0, first / self.pool_size)

    @property
    def p_value(self) -> float:
        """The probability that a random order finds the largest at least as often."""
        # Imported here: only scoring needs it, and it takes a while.
        from scipy.stats import binomtest

        hits = int((self.ranks[:, 0] < FIRST).sum())
        chance = self.chance(FIRST)
        return float(
            binomtest(hits, self.encodings, chance, alternative="greater").pvalue
        )

    @property
    def beats_chance(self) -> bool:
        """Whether the search finds clearly more than a random order does."""
        clearly = self.largest() >= TIMES_CHANCE * self.chance(FIRST)
        return clearly and self.p_value <= SIGNIFICANCE

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        sizes = sorted({1, self.ranks.shape[1], FIRST, RANKED})
        return {
            "encodings": self.encodings,
            "pool_size": self.pool_size,
            "recall": {
                str(first): {"value": self.recall(first), "chance": self.chance(first)}
                for first in sizes
            },
            f"largest_in_top_{FIRST}": {
                "value": self.largest(),
                "chance": self.chance(FIRST),
                "p_value": self.p_value,
            },
        }


@dataclass(frozen=True)
class ShownComponents:
    """Encodings of a client with the public images in them, to draw.

    Attributes:
        encodings: f32[n,C,H,W], normalised.
        true: i64[n,q], rows of the pool, the largest coefficient first.
        ranked: i64[n,m], rows of the pool, the best match first.
    """

    encodings: Tensor
    true: Tensor
    ranked: Tensor


def score_components(
    clients: Sequence[RecoveredClient],
) -> dict[str, ComponentScores]:
    """Hold rankings of the pool against the keys, each distinct encoding once.

    A client that reuses fixed encodings (`instahide.refresh = T`) sends the same ones
    in many rounds, and counting them again would feign certainty.

    Args:
        clients: What was recovered of each client, beside its truth.

    Returns:
        The scores by the name of the ranking.

    Raises:
        ShapeError: there are not as many rankings as encodings.
    """
    total: dict[str, ComponentScores] = {}
    counted: set[bytes] = set()
    for recovered, truths in clients:
        if not recovered.components:
            continue
        true, new = _components(truths, recovered.client, counted)
        for ranking, ranked in recovered.components.items():
            scores = ComponentScores(_ranks(ranked, true)[new], ranked.pool_size)
            total[ranking] = total[ranking] + scores if ranking in total else scores
    return total


def shown_components(
    clients: Sequence[RecoveredClient],
) -> ShownComponents | None:
    """Return the first encodings of the first client, in the last ranking."""
    for recovered, truths in clients:
        if recovered.components:
            encodings = torch.cat([truth.encodings for truth in truths])[:SHOWN]
            true, _ = _components(truths, recovered.client, set())
            ranked = list(recovered.components.values())[-1].index
            return ShownComponents(encodings, true[:SHOWN], ranked[:SHOWN])
    return None


def _components(
    truths: Sequence[ClientTruth], client: str, counted: set[bytes]
) -> tuple[Tensor, Tensor]:
    """Return the public images i64[E,q], the largest first, and the rows that are new.

    Args:
        truths: The truth of one client.
        client: The client's key.
        counted: Digests of encodings counted before; those of this client are added.
    """
    index = torch.cat([truth.key.public_index for truth in truths])
    weights = torch.cat([truth.key.coefficients for truth in truths])
    public = weights[:, weights.shape[1] - index.shape[1] :]
    order = public.argsort(dim=1, descending=True, stable=True)
    new = []
    for row, (images, coefficients) in enumerate(
        zip(index.numpy(), weights.numpy(), strict=True)
    ):
        key = client.encode() + images.tobytes() + np.asarray(coefficients).tobytes()
        if key not in counted:
            counted.add(key)
            new.append(row)
    return index.gather(1, order), torch.tensor(new, dtype=torch.int64)


def _ranks(ranked: RankedComponents, true: Tensor) -> Tensor:
    """Return i64[E,q], the position of each true image in its ranking."""
    if len(ranked.index) != len(true):
        raise ShapeError(
            f"{len(true)} encodings need as many rankings, got {len(ranked.index)}"
        )
    same = ranked.index[:, None, :] == true[:, :, None]  # [E,q,m]
    position = same.int().argmax(dim=2)
    absent = max(ranked.pool_size, RANKED)
    return torch.where(same.any(dim=2), position, torch.full_like(position, absent))
