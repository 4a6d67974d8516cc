"""The weight of the total variation, tried out on public images behind the defence.

The less of an update is left, the more the prior has to say: the weight that serves
depends on the defence, whose settings are public.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from instahide_fl.attacks.base import Recovered
from instahide_fl.attacks.matching.public_clients import simulate_clients
from instahide_fl.config import Config
from instahide_fl.errors import OutputError, PoolError
from instahide_fl.transcript.view import AdversaryView

DEFAULT_WEIGHT = 0.01
WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0)
MAX_CLIENTS = 2  # public images in batches of one: what is tried must take seconds
MAX_ITERATIONS = 200  # fewer would favour larger weights, which converge sooner

TrialAttack: TypeAlias = Callable[[AdversaryView, float, int], Sequence[Recovered]]
"""Attacks a view with a weight, for a number of iterations."""


@dataclass(frozen=True)
class VariationWeight:
    """A weight of the total variation, and where it comes from.

    Attributes:
        value: The weight.
        origin: Who chose it.
        correlations: What the weights that were tried reached on public images.
    """

    value: float
    origin: Literal["setting", "default", "public images"]
    correlations: Mapping[float, float] = field(default_factory=dict)


def choose_weight(
    attack: TrialAttack, view: AdversaryView, iterations: int, rng: np.random.Generator
) -> VariationWeight:
    """Return the weight with which public images are recovered best.

    The default where there is no defence to adapt to, or no public image to try.

    Args:
        attack: The attack, without restarts.
        view: The adversary's view, with at least one observation.
        iterations: The iterations of the attack itself; trials take no more.
        rng: The generator of public images, labels, noise and starting points.
    """
    default = VariationWeight(DEFAULT_WEIGHT, "default")
    if not _can_try(view.config):
        return default
    observed = view.observations[0]
    count = max(1, MAX_CLIENTS // max(1, observed.num_examples))
    try:
        public = simulate_clients(view, observed, count, rng)
    except (PoolError, OutputError):
        return default
    steps = min(MAX_ITERATIONS, iterations)

    def correlation(weight: float) -> float:
        recovered = attack(public.view, weight, steps)
        images = tuple(part.images for part in recovered if part.images is not None)
        return public.similarity(images)

    correlations = climb(correlation, WEIGHTS)
    best = max(correlations, key=lambda weight: correlations[weight])
    return VariationWeight(best, "public images", correlations)


def climb(
    score: Callable[[float], float], values: Sequence[float]
) -> dict[float, float]:
    """Return the scores of values on the way from the middle one to the best.

    Args:
        score: The score of a value, which rises to one maximum and falls after it.
        values: The values to try, ascending.
    """
    scores: dict[float, float] = {}

    def at(index: int) -> float:
        if values[index] not in scores:
            scores[values[index]] = score(values[index])
        return scores[values[index]]

    best = len(values) // 2
    at(best)
    for side in (-1, 1):
        while 0 <= best + side < len(values) and at(best + side) > at(best):
            best += side
    return dict(sorted(scores.items()))


def _can_try(config: Config) -> bool:
    """Tell whether a defence changes what matching finds, and can be simulated."""
    defense = config.defense
    if defense.differential_privacy == "dp-sgd":
        # Samples of random size have no counterpart that matches in size.
        whole = config.train.mode == "gradient" and config.instahide.private_count == 1
        return whole or config.instahide.method == "none"
    return bool(set(defense.transform_names) - {"clip"})
