"""How much differential privacy a run has spent, by Opacus' accountant.

Renyi differential privacy of the sampled Gaussian mechanism: Mironov, Talwar, Zhang,
arXiv:1908.10530. An epsilon is given only where it holds for private images or for
clients; elsewhere a text says why there is none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from instahide_fl.config import Config
from instahide_fl.config.defense import depends_on_one_image

# Noise multipliers: below the least, one release costs an epsilon of thousands and the
# accountant overflows; above the largest, the bound only gets better, and slow to find.
MIN_NOISE = 0.01
MAX_NOISE = 100.0


@dataclass(frozen=True)
class PrivacyLoss:
    """The differential privacy that a run has spent so far.

    Attributes:
        unit: The protected unit; None if nothing is protected.
        delta: The delta of (epsilon, delta); None if nothing is protected.
        epsilon: The epsilon of the image or client that spent most; None if there is
            no such figure.
        per_release: The epsilon of a client's single update (local); None elsewhere.
        absent: The reason why there is no epsilon; empty if there is one.
    """

    unit: Literal["example", "client"] | None
    delta: float | None
    epsilon: float | None = None
    per_release: float | None = None
    absent: str = ""


def gaussian_epsilon(
    noise_multiplier: float, rate: float, steps: int, delta: float
) -> float:
    """Return the epsilon of Gaussian mechanisms on Poisson samples, one after another.

    Neighbouring data sets differ by one part (an image, a client) that only one has.

    Args:
        noise_multiplier: Standard deviation over the norm of one part; at least 0.
        rate: Probability that a part is in a sample, in (0, 1].
        steps: Number of times that noise is added.
        delta: The delta of (epsilon, delta), in (0, 1).

    Returns:
        A number of at least 0; infinite where the accountant finds no bound.
    """
    return composed_epsilon([(noise_multiplier, rate, steps)], delta)


def composed_epsilon(
    mechanisms: Iterable[tuple[float, float, int]], delta: float
) -> float:
    """Return the epsilon of several Gaussian mechanisms, one after another.

    Args:
        mechanisms: The noise multiplier, the sampling rate and the number of releases
            of each, as in `gaussian_epsilon`.
        delta: The delta of (epsilon, delta), in (0, 1).

    Returns:
        A number of at least 0; infinite where the accountant finds no bound.
    """
    releases = [mechanism for mechanism in mechanisms if mechanism[2] > 0]
    if not releases:
        return 0.0
    if min(noise for noise, _, _ in releases) < MIN_NOISE:
        return math.inf
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import get_privacy_spent

    with warnings.catch_warnings():
        # At the first or last order the bound is not the best one, but it holds.
        warnings.filterwarnings("ignore", message="Optimal order is")
        epsilon, _ = get_privacy_spent(
            orders=RDPAccountant.DEFAULT_ALPHAS,
            rdp=sum(
                _renyi_divergence(min(noise, MAX_NOISE), rate) * steps
                for noise, rate, steps in releases
            ),
            delta=delta,
        )
    return max(0.0, float(epsilon)) if math.isfinite(epsilon) else math.inf


@lru_cache(maxsize=10_000)
def _renyi_divergence(noise_multiplier: float, rate: float) -> NDArray[np.float64]:
    """Return the divergence of one step at all orders; the costly part, so cached."""
    # Imported here: Opacus takes seconds, and only private runs need it.
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    divergence: NDArray[np.float64] = compute_rdp(
        q=rate,
        noise_multiplier=noise_multiplier,
        steps=1,
        orders=RDPAccountant.DEFAULT_ALPHAS,
    )
    return divergence


def example_loss(
    config: Config, rounds_by_size: dict[int, int], steps_by_size: dict[int, int]
) -> PrivacyLoss:
    """Return the loss of the image that lost most (dp-sgd).

    Args:
        config: The run's settings.
        rounds_by_size: The most rounds that one client took part in, by the number of
            images that it holds.
        steps_by_size: Number of noisy gradients that such a client computes in a round,
            by the same number.
    """
    defense, train = config.defense, config.train
    if not depends_on_one_image(config.instahide):
        return _without_epsilon(
            config,
            f"no formal guarantee for private images: instahide.method = "
            f'"{config.instahide.method}" puts one into several encodings, and dp-sgd '
            f"bounds what shows of one encoding",
        )
    if defense.noise_multiplier == 0:
        return _without_noise(config)
    batches = train.local_batches if train.mode == "gradient" else 1
    losses = [
        gaussian_epsilon(
            defense.noise_multiplier,
            min(size, train.batch_size * batches) / size,
            rounds * steps_by_size[size],
            defense.delta,
        )
        for size, rounds in rounds_by_size.items()
    ]
    return _with_epsilon(config, max(losses))


def central_loss(config: Config, rate: float, rounds: int) -> PrivacyLoss:
    """Return the loss of a client against whoever sees the models (central).

    Args:
        config: The run's settings.
        rate: Probability that a client is in a cohort.
        rounds: Number of completed rounds.
    """
    defense = config.defense
    if defense.noise_multiplier == 0:
        return _without_noise(config)
    multiplier = defense.noise_multiplier
    return _with_epsilon(
        config, gaussian_epsilon(multiplier, rate, rounds, defense.delta)
    )


def local_loss(config: Config, releases: int) -> PrivacyLoss:
    """Return the loss of a client against the server (local).

    The server sees who takes part, so neighbours are two updates of one client, which
    may be twice the norm apart: the noise counts half.

    Args:
        config: The run's settings.
        releases: Number of updates of the client that sent most.
    """
    defense = config.defense
    if defense.noise_multiplier == 0:
        return _without_noise(config)
    half = defense.noise_multiplier / 2
    return _with_epsilon(
        config,
        gaussian_epsilon(half, 1.0, releases, defense.delta),
        gaussian_epsilon(half, 1.0, 1, defense.delta),
    )


def no_loss() -> PrivacyLoss:
    """Return the (absent) figure of a run without differential privacy."""
    return PrivacyLoss(
        None,
        None,
        absent='no formal guarantee: defense.differential-privacy = "none"',
    )


def _unit(config: Config) -> Literal["example", "client"]:
    return "example" if config.defense.differential_privacy == "dp-sgd" else "client"


def _with_epsilon(
    config: Config, epsilon: float, per_release: float | None = None
) -> PrivacyLoss:
    if not math.isfinite(epsilon):
        return _without_epsilon(
            config,
            f"no formal guarantee: the accountant finds no finite epsilon for "
            f"defense.noise-multiplier = {config.defense.noise_multiplier}",
        )
    return PrivacyLoss(_unit(config), config.defense.delta, epsilon, per_release)


def _without_noise(config: Config) -> PrivacyLoss:
    reason = "no formal guarantee: defense.noise-multiplier is 0"
    return _without_epsilon(config, reason)


def _without_epsilon(config: Config, reason: str) -> PrivacyLoss:
    return PrivacyLoss(_unit(config), config.defense.delta, absent=reason)
