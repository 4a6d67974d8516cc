"""What a run will spend of differential privacy, and the noise for an epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median

from instahide_fl.config import Config
from instahide_fl.defenses.accounting import (
    MAX_NOISE,
    MIN_NOISE,
    PrivacyLoss,
    gaussian_epsilon,
    no_loss,
    privacy_loss,
    released,
)
from instahide_fl.errors import ConfigError
from instahide_fl.terminal import counted
from instahide_fl.training.cohort_sampling import count_rounds
from instahide_fl.types import client_sort_key

NOISE_DIGITS = 3  # noise is rounded up, which is the same on all machines
MAX_EXCESS = 1.005  # of noise over the least that keeps an epsilon
MAX_MULTIPLE_OF_MEDIAN = 2.0
MAX_EXPOSED_LINES = 20


def planned_loss(config: Config, sizes: Mapping[str, int]) -> PrivacyLoss:
    """Return what the image or client that loses most will have lost at the end.

    Args:
        config: The run's settings.
        sizes: Number of images by client.
    """
    if not config.defense.is_private:
        return no_loss()
    spent = released(config, sizes, _rounds(config, sizes), config.train.rounds)
    return privacy_loss(config, spent.values(), tight=True)


def epsilon_by_client(config: Config, sizes: Mapping[str, int]) -> dict[str, float]:
    """Return the epsilon of each client at the end, by the Renyi accountant.

    Args:
        config: The run's settings.
        sizes: Number of images by client.

    Returns:
        Epsilons by client; nothing where there is no epsilon.
    """
    if not config.defense.is_private:
        return {}
    spent = released(config, sizes, _rounds(config, sizes), config.train.rounds)
    # The slow accountant has a bound wherever this one has.
    if privacy_loss(config, spent.values()).epsilon is None:
        return {}
    delta = config.defense.delta
    by_mechanism = {
        each: gaussian_epsilon(*each, delta) for each in set(spent.values())
    }
    return {client: by_mechanism[mechanism] for client, mechanism in spent.items()}


def exposed_clients(epsilons: Mapping[str, float]) -> dict[str, float]:
    """Return the clients whose epsilon is more than twice the median, and theirs.

    A client with few images is sampled more often, image by image, than others. Clients
    that never take part spend nothing and are left out of the median.

    Args:
        epsilons: Epsilons by client.
    """
    spent = [epsilon for epsilon in epsilons.values() if epsilon > 0]
    if not spent:
        return {}
    bound = MAX_MULTIPLE_OF_MEDIAN * median(spent)
    return {client: value for client, value in epsilons.items() if value > bound}


def exposed_clients_in_words(config: Config, sizes: Mapping[str, int]) -> list[str]:
    """Return a line for each client that spends more than twice the median.

    Args:
        config: The run's settings.
        sizes: Number of images by client.

    Returns:
        The lines, those that spend most first; of more than `MAX_EXPOSED_LINES` the
        last line says how many are left out.
    """
    exposed = exposed_clients(epsilon_by_client(config, sizes))
    rounds = _rounds(config, sizes) if exposed else {}
    lines = [
        f"client {client} ({counted(sizes[client], 'image')}, asked in "
        f"{rounds[client]} of {counted(config.train.rounds, 'round')}) will spend an "
        f"epsilon of {epsilon:.3g}, more than twice the median of the clients that "
        f"take part"
        for client, epsilon in sorted(exposed.items(), key=lambda item: -item[1])
    ]
    if len(lines) <= MAX_EXPOSED_LINES:
        return lines
    more = counted(len(lines) - MAX_EXPOSED_LINES, "more client")
    return [*lines[:MAX_EXPOSED_LINES], f"and {more} of more than twice the median"]


def with_target_epsilon(config: Config, sizes: Mapping[str, int]) -> Config:
    """Return the settings with the least noise that keeps `defense.target-epsilon`.

    Args:
        config: The run's settings; returned as they are without a target.
        sizes: Number of images by client.

    Raises:
        ConfigError: No noise reaches the target, or there is no epsilon at all.
    """
    target = config.defense.target_epsilon
    if not target:
        return config

    rounds = _rounds(config, sizes)

    def epsilon_at(noise: float, *, tight: bool = True) -> float:
        noisy = _with_noise(config, noise)
        spent = released(noisy, sizes, rounds, config.train.rounds).values()
        loss = privacy_loss(noisy, spent, tight=tight)
        if loss.epsilon is None and noise == MAX_NOISE:
            raise ConfigError(f"defense.target-epsilon = {target:g}: {loss.absent}")
        return math.inf if loss.epsilon is None else loss.epsilon

    least = epsilon_at(MAX_NOISE)
    if least > target:
        raise ConfigError(
            f"defense.target-epsilon = {target:g} cannot be reached with these clients "
            f"and rounds: the nearest is {math.ceil(least * 1000) / 1000:g}, with "
            f"defense.noise-multiplier = {MAX_NOISE:g}. {_what_spends_less(config)}"
        )
    # The Renyi accountant is fast, and asks for no less noise than both together.
    enough = _smallest(
        lambda noise: epsilon_at(noise, tight=False) <= target,
        MIN_NOISE,
        MAX_NOISE,
        1.05,
    )
    noise = _smallest(
        lambda noise: epsilon_at(noise) <= target, enough / 4, enough, MAX_EXCESS
    )
    return _with_noise(config, _rounded_up(noise))


def _smallest(
    is_enough: Callable[[float], bool], low: float, high: float, excess: float
) -> float:
    """Return the smallest noise that is enough, or up to `excess` times it.

    Args:
        is_enough: Whether a noise is enough; true for all above the smallest.
        low: A noise that need not be tried.
        high: A noise that is enough.
        excess: A factor above 1.
    """
    while high / low > excess:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def check_target_epsilon(config: Config, sizes: Mapping[str, int]) -> None:
    """Refuse noise that is too small for `defense.target-epsilon`.

    Args:
        config: The run's settings, with a target.
        sizes: Number of images by client.

    Raises:
        ConfigError: The run would spend more, or there is no epsilon at all.
    """
    defense, loss = config.defense, planned_loss(config, sizes)
    if loss.epsilon is not None and loss.epsilon <= defense.target_epsilon:
        return
    if loss.absent:
        raise ConfigError(
            f"defense.target-epsilon = {defense.target_epsilon:g}: {loss.absent}"
        )
    enough = with_target_epsilon(config, sizes).defense.noise_multiplier
    raise ConfigError(
        f"defense.target-epsilon = {defense.target_epsilon:g} is not kept with "
        f"defense.noise-multiplier = {defense.noise_multiplier:g}: the run would spend "
        f"{loss.epsilon:.3g}. With these clients, set defense.noise-multiplier = "
        f"{enough:g}"
    )


def _what_spends_less(config: Config) -> str:
    """Name the settings that a smaller epsilon can be had with."""
    train, kind = config.train, config.defense.differential_privacy
    fewer_rounds = f"Fewer rounds (train.rounds = {train.rounds})"
    if kind == "local":  # neither images nor other clients have a part in it
        return f"{fewer_rounds} spend less"
    if kind == "central":
        return (
            f"{fewer_rounds} or a smaller share of the clients in a round "
            f"(train.clients-per-round = {train.clients_per_round}) spend less"
        )
    return (
        f"{fewer_rounds} or a smaller share of the images in a batch "
        f"(train.batch-size = {train.batch_size}) spend less"
    )


def _rounds(config: Config, sizes: Mapping[str, int]) -> Mapping[str, int]:
    clients = sorted(sizes, key=client_sort_key)
    train = config.train
    return count_rounds(clients, config.seed, train.rounds, train.clients_per_round)


def _with_noise(config: Config, noise: float) -> Config:
    return config.with_values({"defense.noise-multiplier": noise})


def _rounded_up(noise: float) -> float:
    scale = 10.0 ** (NOISE_DIGITS - 1 - math.floor(math.log10(noise)))
    return math.ceil(noise * scale - 1e-9) / scale
