"""Which clients take part in a round: repeated by the seed, so it can be planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from instahide_fl.rng import stream


def cohort_size(asked: int, clients: int) -> int:
    """Return the size of a cohort, or its mean if cohorts are Poisson samples.

    Args:
        asked: The value of `train.clients-per-round`; 0 takes all.
        clients: The number of clients.
    """
    return asked if 0 < asked < clients else clients


def sample_cohort(
    clients: Sequence[str], seed: int, round_number: int, size: int
) -> list[str]:
    """Choose a cohort of fixed size, without replacement.

    Args:
        clients: Client keys in order.
        seed: The run's seed.
        round_number: 1, 2, ...
        size: Number of clients to choose; 0 takes all.

    Returns:
        Client keys in order.
    """
    if not 0 < size < len(clients):
        return list(clients)
    rng = stream(seed, "cohort", round_number)
    chosen = rng.choice(len(clients), size=size, replace=False)
    return [clients[i] for i in sorted(chosen)]


def count_rounds(
    clients: Sequence[str], seed: int, rounds: int, size: int
) -> Counter[str]:
    """Return in how many of a run's rounds each client takes part.

    Args:
        clients: Client keys in order.
        seed: The run's seed.
        rounds: Number of rounds.
        size: As in `sample_cohort`.
    """
    if not 0 < size < len(clients):
        return Counter(dict.fromkeys(clients, rounds))
    counts: Counter[str] = Counter()
    for number in range(1, rounds + 1):
        counts.update(sample_cohort(clients, seed, number, size))
    return counts
