"""Find the public images that an encoding mixes, in the pool they come from."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

import numpy as np
import torch

from instahide_fl.attacks.attack import (
    Advance,
    Attack,
    RankedComponents,
    Reconstruction,
    Recovered,
)
from instahide_fl.attacks.component_scoring import RANKED
from instahide_fl.attacks.pool_ranking import correlation_embedding, rank_pool
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import AdversaryView, Knowledge, Observation

Score: TypeAlias = Literal["correlation"]


class PoolSearch(Attack):
    """Rank the whole pool for each encoding."""

    section = "pool_search"
    name: ClassVar[str] = "pool_search"
    summary: ClassVar[str] = "the public images in each encoding, found in the pool"
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.ENCODINGS, Knowledge.POOL}
    )
    cost: ClassVar[str] = "seconds for a pool of 20,000 images"
    source: ClassVar[str] = (
        "the search of public images that Huang et al., InstaHide, ICML 2020, discuss "
        "as an attack; this score is the simplest one"
    )
    threat_model: ClassVar[str] = "encodings-holder"
    no_control: ClassVar[str] = "a run that hides nothing mixes no public images"

    score: Score = "correlation"
    """`correlation` of pixels, absolute ones under a sign mask."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, advance: Advance
    ) -> Reconstruction:
        """Search.

        Args:
            view: with encodings and the pool.
            rng: unused.
            advance: told how much of the pool was read.

        Raises:
            AttackError: the encodings mix no public images, or there are none.
            PoolError: the pool's images have another shape.
        """
        pool = searched_pool(view)
        seen = observed_encodings(view)
        encodings = torch.cat(
            [one.encodings for one in seen if one.encodings is not None]
        )
        embed = correlation_embedding(view.config.instahide.method == "instahide")
        found = rank_pool(embed(encodings), pool, embed, RANKED, advance)
        return by_observation(seen, {self.score: found})


def searched_pool(view: AdversaryView) -> MixingPool:
    """Return the pool that a run's encodings take images from.

    Raises:
        AttackError: they take none.
        PoolError: the pool's images have another shape.
    """
    config = view.config.instahide
    if not config.uses_pool or view.pool is None:
        raise AttackError(
            f"attack pool_search looks for public images, which the encodings of this "
            f"run do not mix (instahide.method = {config.method!r}, instahide.scope = "
            f'{config.scope!r}): it applies to runs with instahide.scope = "cross"'
        )
    view.pool.check_fits(view.image_shape, config.public_count)
    return view.pool


def observed_encodings(view: AdversaryView) -> list[Observation]:
    """Return the observations that have encodings.

    Raises:
        AttackError: there are none.
    """
    seen = [
        one
        for one in view.observations
        if one.encodings is not None and len(one.encodings)
    ]
    if not seen:
        raise AttackError(
            "there are no encodings to search for: record at least one round "
            '(--set record.rounds="1") with clients in it'
        )
    return seen


def by_observation(
    seen: list[Observation], found: dict[str, RankedComponents]
) -> Reconstruction:
    """Divide rankings of all encodings among the clients and rounds they are of."""
    recovered, start = [], 0
    for one in seen:
        stop = start + (0 if one.encodings is None else len(one.encodings))
        own = {score: ranked.rows(start, stop) for score, ranked in found.items()}
        recovered.append(Recovered(one.client, one.round, components=own))
        start = stop
    return Reconstruction("components", tuple(recovered))
