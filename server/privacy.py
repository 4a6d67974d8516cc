"""The differential privacy that a run has spent, from what the server knows.

Sampling rates follow from public settings and the clients' numbers of images. Who took
part follows from the cohorts, which the seed repeats: a resumed run counts them again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from instahide_fl.config import Config
from instahide_fl.defenses.accounting import (
    PrivacyLoss,
    central_loss,
    example_loss,
    local_loss,
    no_loss,
)
from instahide_fl.training.local import local_steps
from server.cohort import Clients


@dataclass
class PrivacyLedger:
    """Counts in how many rounds each client took part, and asks the accountant.

    A client counts as soon as it was asked, whether its update came or not.

    Attributes:
        config: The run's settings.
        clients: The clients of the federation.
    """

    config: Config
    clients: Clients
    _rounds: int = 0
    _took_part: Counter[str] = field(default_factory=Counter)

    def loss_after(self, round_number: int) -> PrivacyLoss:
        """Return the privacy loss of the image or client that lost most.

        Args:
            round_number: The last completed round; 1, 2, ...
        """
        kind = self.config.defense.differential_privacy
        if kind == "none":
            return no_loss()
        if kind == "central":
            rate = self.clients.expected_cohort(self.config) / len(self.clients.nodes)
            return central_loss(self.config, rate, round_number)
        for number in range(self._rounds + 1, round_number + 1):
            self._took_part.update(self.clients.cohort(self.config, number))
        self._rounds = max(self._rounds, round_number)
        if kind == "local":
            return local_loss(self.config, max(self._took_part.values()))
        rounds_by_size, steps_by_size = self._by_size()
        return example_loss(self.config, rounds_by_size, steps_by_size)

    def _by_size(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return rounds and steps a round of a client, by its number of images.

        The most rounds: the loss is that of the image that lost most.
        """
        rounds: dict[int, int] = {}
        for client, count in self._took_part.items():
            size = self.clients.num_examples[client]
            rounds[size] = max(rounds.get(size, 0), count)
        train = self.config.train
        steps = {
            size: 1 if train.mode == "gradient" else local_steps(size, train)
            for size in rounds
        }
        return rounds, steps


def privacy_summary(loss: PrivacyLoss) -> dict[str, Any]:
    """Return the figures for summary.json; missing ones are left out."""
    figures = {
        "epsilon": loss.epsilon,
        "epsilon_per_release": loss.per_release,
        "delta": loss.delta,
        "privacy_unit": loss.unit,
        "epsilon_absent": loss.absent or None,
    }
    return {name: value for name, value in figures.items() if value is not None}
