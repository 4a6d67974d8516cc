"""The differential privacy that a run has spent, from what the server knows.

Sampling rates follow from public settings and the clients' numbers of images. Who took
part follows from the cohorts, which the seed repeats: a resumed run counts them again.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from instahide_fl.config import Config
from instahide_fl.defenses.accounting import (
    PrivacyLoss,
    no_loss,
    privacy_loss,
    released,
)
from instahide_fl.defenses.planned_privacy import (
    check_target_epsilon,
    exposed_clients_in_words,
)
from server.cohort import Clients

log = logging.getLogger("instahide_fl.server")


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

    def check_target(self) -> None:
        """Check that the noise keeps the target, and name exposed clients.

        Who starts a simulation computes the noise. Here it may be another: clients of a
        deployment tell their numbers of images only now.

        Raises:
            ConfigError: it does not.
        """
        sizes, defense = self.clients.num_examples, self.config.defense
        if defense.target_epsilon:
            check_target_epsilon(self.config, sizes)
        for line in exposed_clients_in_words(self.config, sizes):
            log.warning("%s", line)

    def loss_after(self, round_number: int, *, tight: bool = False) -> PrivacyLoss:
        """Return the privacy loss of the image or client that lost most.

        Args:
            round_number: The last completed round; 1, 2, ...
            tight: Whether to ask the slow accountant too.
        """
        if not self.config.defense.is_private:
            return no_loss()
        for number in range(self._rounds + 1, round_number + 1):
            self._took_part.update(self.clients.cohort(self.config, number))
        self._rounds = max(self._rounds, round_number)
        sizes = self.clients.num_examples
        spent = released(self.config, sizes, self._took_part, round_number)
        return privacy_loss(self.config, spent.values(), tight=tight)


def privacy_summary(loss: PrivacyLoss) -> dict[str, Any]:
    """Return the figures for summary.json; missing ones are left out."""
    figures = {
        "epsilon": loss.epsilon,
        "epsilon_rdp": loss.epsilon_rdp,
        "epsilon_per_release": loss.per_release,
        "delta": loss.delta,
        "privacy_unit": loss.unit,
        "epsilon_absent": loss.absent or None,
    }
    return {name: value for name, value in figures.items() if value is not None}
