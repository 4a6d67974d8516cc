"""How much differential privacy a run has spent, by Opacus' accountants.

Renyi differential privacy of the sampled Gaussian mechanism: Mironov, Talwar, Zhang,
arXiv:1908.10530. What a whole run has spent is also bounded by the distribution of the
privacy loss (Gopi, Lee, Wutschitz, NeurIPS 2021), which is tighter and takes longer. An
epsilon is given only where it holds for private images or for clients; elsewhere a text
says why there is none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from instahide_fl.config import Config, TrainConfig
from instahide_fl.config.defense import depends_on_one_image
from instahide_fl.training.cohort_sampling import cohort_size
from instahide_fl.training.local import local_steps

# Noise multipliers: below the least, one release costs an epsilon of thousands and the
# accountant overflows; above the largest, the bound only gets better, and slow to find.
MIN_NOISE = 0.01
MAX_NOISE = 100.0
MAX_DISTRIBUTION_EPSILON = 100.0


@dataclass(frozen=True)
class PrivacyLoss:
    """The differential privacy that a run has spent so far.

    Attributes:
        unit: The protected unit; None if nothing is protected.
        delta: The delta of (epsilon, delta); None if nothing is protected.
        epsilon: The epsilon of the image or client that spent most; None if there is
            no such figure.
        epsilon_rdp: The same by the Renyi accountant alone, where `epsilon` is by both.
        per_release: The epsilon of a client's single update (local); None elsewhere.
        absent: The reason why there is no epsilon; empty if there is one.
    """

    unit: Literal["example", "client"] | None
    delta: float | None
    epsilon: float | None = None
    per_release: float | None = None
    absent: str = ""
    epsilon_rdp: float | None = None


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


def tight_epsilon(
    noise_multiplier: float, rate: float, steps: int, delta: float
) -> float:
    """Return the smaller of the bounds of both accountants.

    The distribution of the privacy loss is computed numerically, to within a hundredth
    of the epsilon; the error is part of what is returned, so that the bound holds.

    Args:
        noise_multiplier: As in `gaussian_epsilon`.
        rate: As there.
        steps: As there.
        delta: As there.

    Returns:
        A number of at least 0; infinite where neither accountant finds a bound.
    """
    renyi = gaussian_epsilon(noise_multiplier, rate, steps, delta)
    # Beyond, the grid of the distribution takes minutes, for a bound of no use.
    if not 0 < renyi <= MAX_DISTRIBUTION_EPSILON:
        return renyi
    mechanism = Mechanism(noise_multiplier, rate, steps)
    return min(renyi, _distribution_epsilon(mechanism, delta, 0.01 * renyi))


def _distribution_epsilon(mechanism: Mechanism, delta: float, error: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    noise = min(mechanism.noise, MAX_NOISE)
    accountant.history = [(noise, mechanism.rate, mechanism.steps)]
    with warnings.catch_warnings():
        # Where its numbers overflow it returns infinity, and the other bound counts.
        warnings.simplefilter("ignore")
        epsilon = accountant.get_epsilon(delta, eps_error=max(0.01, error))
    return float(epsilon) if math.isfinite(epsilon) and epsilon >= 0 else math.inf


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


class Mechanism(NamedTuple):
    """Gaussian noise on Poisson samples, once or several times.

    Attributes:
        noise: Standard deviation of the noise over the norm of one part.
        rate: Probability that a part is in a sample, in (0, 1].
        steps: Number of times that noise was added.
    """

    noise: float
    rate: float
    steps: int


def released(
    config: Config, sizes: Mapping[str, int], took_part: Mapping[str, int], rounds: int
) -> dict[str, Mechanism]:
    """Return what each client has released.

    - dp-sgd: noisy sums over Poisson samples of its images.
    - central: the noisy models, of which each is made from a Poisson sample of clients;
      the same for all.
    - local: its updates. The server sees who takes part, so neighbours are two updates
      of one client, which may be twice the norm apart: the noise counts half.

    Args:
        config: The run's settings.
        sizes: Number of images by client.
        took_part: Number of rounds by client that it was asked in.
        rounds: Number of completed rounds.
    """
    defense, train = config.defense, config.train
    noise = defense.noise_multiplier
    if defense.differential_privacy == "central":
        rate = cohort_size(train.clients_per_round, len(sizes)) / len(sizes)
        return dict.fromkeys(sizes, Mechanism(noise, rate, rounds))
    if defense.differential_privacy == "local":
        return {
            client: Mechanism(noise / 2, 1.0, took_part[client]) for client in sizes
        }
    batches = train.local_batches if train.mode == "gradient" else 1
    return {
        client: Mechanism(
            noise,
            min(size, train.batch_size * batches) / size,
            took_part[client] * _noisy_steps(size, train),
        )
        for client, size in sizes.items()
    }


def _noisy_steps(size: int, train: TrainConfig) -> int:
    return 1 if train.mode == "gradient" else local_steps(size, train)


def privacy_loss(
    config: Config, mechanisms: Collection[Mechanism], *, tight: bool = False
) -> PrivacyLoss:
    """Return the loss of the image or client that lost most.

    Args:
        config: The run's settings, with differential privacy.
        mechanisms: What clients have released, as `released` says.
        tight: Whether both accountants are asked, which takes about a second.
    """
    defense = config.defense
    if defense.differential_privacy == "dp-sgd" and not depends_on_one_image(
        config.instahide
    ):
        return _without_epsilon(
            config,
            f"no formal guarantee for private images: instahide.method = "
            f'"{config.instahide.method}" puts one into several encodings, and dp-sgd '
            f"bounds what shows of one encoding",
        )
    if defense.noise_multiplier == 0:
        reason = "no formal guarantee: defense.noise-multiplier is 0"
        return _without_epsilon(config, reason)
    renyi = {
        each: gaussian_epsilon(*each, defense.delta)
        for each in _undominated(mechanisms)
    }
    largest = max(renyi.values())
    if not math.isfinite(largest):
        return _without_epsilon(
            config,
            f"no formal guarantee: the accountant finds no finite epsilon for "
            f"defense.noise-multiplier = {defense.noise_multiplier}",
        )
    loss = PrivacyLoss(_unit(config), defense.delta, largest)
    if defense.differential_privacy == "local":
        once = next(iter(renyi))._replace(steps=1)
        bound = tight_epsilon if tight else gaussian_epsilon
        loss = replace(loss, per_release=bound(*once, defense.delta))
    if tight:
        epsilon = _largest_tight_epsilon(renyi, defense.delta)
        loss = replace(loss, epsilon=epsilon, epsilon_rdp=largest)
    return loss


def _undominated(mechanisms: Collection[Mechanism]) -> list[Mechanism]:
    """Return the mechanisms that may lose most.

    Loss grows with rate and with steps, so one that another exceeds in both does not
    count: of hundreds of clients few remain, each of which takes a tenth of a second.

    Args:
        mechanisms: Mechanisms of the same noise.
    """
    candidates: list[Mechanism] = []
    for mechanism in sorted(set(mechanisms), reverse=True):  # the highest rate first
        if not candidates or mechanism.steps > candidates[-1].steps:
            candidates.append(mechanism)
    return candidates


def _largest_tight_epsilon(renyi: Mapping[Mechanism, float], delta: float) -> float:
    """Return the largest tight epsilon, with few calls of the slow accountant."""
    largest = 0.0
    for mechanism, bound in sorted(renyi.items(), key=itemgetter(1), reverse=True):
        if bound <= largest:
            break
        largest = max(largest, tight_epsilon(*mechanism, delta))
    return largest


def no_loss() -> PrivacyLoss:
    """Return the (absent) figure of a run without differential privacy."""
    return PrivacyLoss(
        None,
        None,
        absent='no formal guarantee: defense.differential-privacy = "none"',
    )


def _unit(config: Config) -> Literal["example", "client"]:
    return "example" if config.defense.differential_privacy == "dp-sgd" else "client"


def _without_epsilon(config: Config, reason: str) -> PrivacyLoss:
    return PrivacyLoss(_unit(config), config.defense.delta, absent=reason)
