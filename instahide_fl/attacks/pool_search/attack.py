"""Find the public images that an encoding mixes, in the pool they come from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    RankedComponents,
    Reconstruction,
    Recovered,
    scale_progress,
)
from instahide_fl.attacks.magnitudes import shifted_to_zero
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

RANKED = 100  # best public images that are returned for each encoding
Score: TypeAlias = Literal["correlation", "whitened", "learned"]


class PoolSearch(Attack):
    """Rank the whole pool for each encoding."""

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
    no_reference: ClassVar[str] = "a run that hides nothing mixes no public images"

    score: Score = "whitened"
    """How images are compared: `correlation` of pixels (of absolute values under a sign
    mask), which is always reported too; `whitened`, after removing what photographs
    have in common; or `learned`, by two networks trained on the attacker's own
    mixtures."""
    proxy: str = ""
    """Public images that stand in for private ones in the mixtures that the networks
    are trained on, named as in `data.dataset`; empty takes images of the pool."""
    steps: Count = 300
    """Batches that the networks are trained on."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Mixtures in a batch."""
    absolute_values: bool = False
    """Whether absolute values of encodings are searched, up to scale and offset, as an
    update of a sign-invariant network gives them away."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Rank the pool by plain correlation, and by `score`.

        Args:
            view: The adversary's view, with encodings and the pool.
            rng: The generator of the sample that whitening is measured on, and of the
                attacker's own mixtures.
            progress: The callback for progress of training and search.

        Raises:
            AttackError: there are no encodings, they mix no public images, or the proxy
                does not fit.
            PoolError: the pool's images have another shape.
        """
        pool = searched_pool(view)
        observations = observed_encodings(view)
        encodings = torch.cat(
            [
                observation.encodings
                for observation in observations
                if observation.encodings is not None
            ]
        )
        if self.absolute_values:
            encodings = shifted_to_zero(encodings)
        correlation = correlation_embedding(view.config.instahide.method == "instahide")
        comparisons = {"correlation": Comparison(correlation(encodings), correlation)}
        parts = 1
        if self.score != "correlation":
            parts = 3  # preparation, and a pass over the pool for each comparison
            preparation = scale_progress(progress, 0, parts)
            comparisons[self.score] = self._comparison(
                view, pool, encodings, rng, preparation
            )
        rankings = {}
        for part, (score, comparison) in enumerate(
            comparisons.items(), start=parts - len(comparisons)
        ):
            rankings[score] = rank_pool(
                comparison, pool, RANKED, scale_progress(progress, part, parts)
            )
        return by_observation(observations, rankings)

    def _comparison(
        self,
        view: AdversaryView,
        pool: MixingPool,
        encodings: Tensor,
        rng: np.random.Generator,
        progress: ProgressCallback,
    ) -> Comparison:
        """Return the comparison that `score` names, if it is not plain correlation."""
        masked = view.config.instahide.method == "instahide"
        if self.score == "whitened":
            white = Whitening.of_pool(pool, masked, rng)
            return Comparison(white.embed_encodings(encodings), white.embed)
        training = Training(self.steps, self.batch_size)
        mixtures = own_mixtures(view, pool, self.proxy)
        return train_towers(
            mixtures=mixtures,
            pool=pool,
            ignore_signs=masked,
            encodings=encodings,
            training=training,
            rng=rng,
            progress=progress,
        )


def searched_pool(view: AdversaryView) -> MixingPool:
    """Return the pool that a run's encodings take images from.

    Raises:
        AttackError: the encodings mix no public images.
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
        AttackError: no observation has any.
    """
    observations = [
        observation
        for observation in view.observations
        if observation.encodings is not None and len(observation.encodings)
    ]
    if not observations:
        raise AttackError(
            "there are no encodings to attack: record at least one round "
            '(--set record.rounds="1") with clients in it'
        )
    return observations


def by_observation(
    observations: list[Observation], rankings: dict[str, RankedComponents]
) -> Reconstruction:
    """Divide the rankings of all encodings by client and round.

    Args:
        observations: The clients and rounds, in the order of their encodings.
        rankings: The rankings of all encodings, by score.
    """
    recovered, start = [], 0
    for observation in observations:
        stop = start + (
            0 if observation.encodings is None else len(observation.encodings)
        )
        components = {
            score: ranking.rows(start, stop) for score, ranking in rankings.items()
        }
        recovered.append(
            Recovered(observation.client, observation.round, components=components)
        )
        start = stop
    return Reconstruction("components", tuple(recovered))
