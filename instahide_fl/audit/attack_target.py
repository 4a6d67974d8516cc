"""What can be attacked: a recorded run, or a challenge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from instahide_fl.audit.undefended import Truths
from instahide_fl.config import Config
from instahide_fl.data.augment import Augmentation
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.threat_model import ThreatModel
from instahide_fl.transcript.view import AdversaryView
from instahide_fl.types import ChannelStatistics


class Subject(Protocol):
    """What is attacked: a recorded run, or a challenge."""

    @property
    def config(self) -> Config:
        """Its settings."""

    @property
    def truths(self) -> Truths:
        """Of every client, to score with; empty if nobody knows it."""

    @property
    def transcripts(self) -> Sequence[RoundTranscript]:
        """Of the rounds that were recorded; empty if nothing was trained."""

    @property
    def statistics(self) -> ChannelStatistics:
        """Constants that private images are normalised with."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def augmentation(self) -> Augmentation | None:
        """What was done to private images before mixing."""

    def view(self, model: ThreatModel) -> AdversaryView:
        """Return what an adversary has.

        Raises:
            ThreatModelError: nobody could give that adversary what it knows.
        """

    def control(self) -> Subject:
        """Return the same with nothing hidden.

        Raises:
            AttackError: that cannot be computed, and why.
        """

    def about(self) -> dict[str, Any]:
        """Return what to write beside the figures."""

    def accuracies(self) -> Mapping[int, float | None]:
        """Return the test accuracy after each round; empty if nothing was trained."""
