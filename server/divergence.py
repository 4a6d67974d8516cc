"""Tells rounds that failed because training diverged from those that failed otherwise.

Clients' reasons are texts: they come from other machines, or from workers that checked
the updates there.
"""

from __future__ import annotations

from collections.abc import Mapping

from instahide_fl.config import Config
from instahide_fl.errors import DivergenceError, RoundError

LOWER_LEARNING_RATE = ": lower the learning rate"  # ends each such reason
MAX_NAMED_CLIENTS = 5


def failed_round(text: str, failures: Mapping[str, str], config: Config) -> RoundError:
    """Return the error of a round that lacks updates.

    Args:
        text: What is wrong with the round.
        failures: The reason why each client that failed has no update, by client key.
        config: The run's settings, for the remedy.

    Returns:
        A DivergenceError, with the clients and the remedy in front of the reasons, if
        most of the clients that failed sent values or losses that are not finite.
    """
    diverged = [
        client
        for client, reason in failures.items()
        if reason.endswith(LOWER_LEARNING_RATE)
    ]
    if 2 * len(diverged) <= len(failures):
        return RoundError(text)
    shown = ", ".join(diverged[:MAX_NAMED_CLIENTS])
    more = len(diverged) - MAX_NAMED_CLIENTS
    return DivergenceError(
        f"{text}; training diverged on client{'s' * (len(diverged) > 1)} {shown}"
        f"{f' and {more} more' if more > 0 else ''}: lower {config.step_size}"
    )
