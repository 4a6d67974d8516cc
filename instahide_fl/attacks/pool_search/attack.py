"""Find the public images that an encoding mixes, in the pool they come from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from instahide_fl.attacks.base import (
    Advance,
    Attack,
    RankedComponents,
    Reconstruction,
    Recovered,
    continued,
)
from instahide_fl.attacks.pool_search.network_training import Training
from instahide_fl.attacks.pool_search.pool_ranking import (
    Comparison,
    correlation_embedding,
    rank_pool,
)
from instahide_fl.attacks.pool_search.training_mixtures import own_mixtures
from instahide_fl.attacks.pool_search.two_towers import train_towers
from instahide_fl.attacks.whitening import Whitening
from instahide_fl.config.base import Count
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView, Observation

RANKED = 100  # public images that the search returns for each encoding
Score: TypeAlias = Literal["correlation", "whitened", "learned"]


class PoolSearch(Attack):
    """Rank the whole pool for each encoding."""

    section = "pool_search"
    name: ClassVar[str] = "pool_search"
    summary: ClassVar[str] = "the public images in each encoding, found in the pool"
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.ENCODINGS, Knowledge.POOL}
    )
    cost: ClassVar[str] = (
        "seconds for a pool of 20,000 images, minutes for a million; minutes more to "
        "train two networks (score learned)"
    )
    source: ClassVar[str] = (
        "the search that the authors of InstaHide conjecture to cost N^(k-2) steps "
        "(offconvex.org, 2020-11-11); the scores are of this project"
    )
    threat_model: ClassVar[str] = "encodings-holder"
    no_control: ClassVar[str] = "a run that hides nothing mixes no public images"

    score: Score = "whitened"
    """`correlation` of pixels, absolute ones under a sign mask, which is reported
    beside every other; `whitened`, after taking out what photographs have in common; or
    `learned`, by two networks trained on own mixtures."""
    proxy: str = ""
    """Public images in the place of private ones in the mixtures that networks are
    trained on, as in `data.dataset`; empty takes images of the pool."""
    steps: Count = 300
    """Batches that a network is trained for."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Mixtures in a batch."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, advance: Advance
    ) -> Reconstruction:
        """Search.

        Args:
            view: with encodings and the pool.
            rng: draws the sample that whitening is measured on, and own mixtures.
            advance: told how far training and search are.

        Raises:
            AttackError: the encodings mix no public images, or there are none, or the
                proxy does not fit.
            PoolError: the pool's images have another shape.
        """
        pool = searched_pool(view)
        seen = observed_encodings(view)
        encodings = torch.cat(
            [one.encodings for one in seen if one.encodings is not None]
        )
        plain = correlation_embedding(view.config.instahide.method == "instahide")
        ways = {"correlation": Comparison(plain(encodings), plain)}
        parts = 1
        if self.score != "correlation":
            parts = 3
            ahead = continued(advance, 0, parts)
            ways[self.score] = self._comparison(view, pool, encodings, rng, ahead)
        found = {}
        for number, (score, way) in enumerate(ways.items(), start=parts - len(ways)):
            found[score] = rank_pool(
                way, pool, RANKED, continued(advance, number, parts)
            )
        return by_observation(seen, found)

    def _comparison(
        self,
        view: AdversaryView,
        pool: MixingPool,
        encodings: Tensor,
        rng: np.random.Generator,
        advance: Advance,
    ) -> Comparison:
        """Return the comparison that `score` names, other than the plain one."""
        masked = view.config.instahide.method == "instahide"
        if self.score == "whitened":
            white = Whitening.of_pool(pool, masked, rng)
            return Comparison(white.embed_encodings(encodings), white.embed)
        training = Training(self.steps, self.batch_size)
        mixtures = own_mixtures(view, pool, self.proxy)
        return train_towers(mixtures, pool, masked, encodings, training, rng, advance)


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
            "there are no encodings to attack: record at least one round "
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
