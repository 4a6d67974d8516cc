"""What can be attacked: a recorded run, or a challenge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.config import Config
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.threat_model import ThreatModel
from instahide_fl.transcript.view import AdversaryView
from instahide_fl.types import ChannelStatistics


class AttackTarget(Protocol):
    """A recorded run or a challenge, as something to attack."""

    @property
    def config(self) -> Config:
        """The settings of the run or the challenge."""

    @property
    def ground_truth(self) -> GroundTruth | None:
        """What the clients hid, prepared for scoring; None if nobody knows it."""

    @property
    def transcripts(self) -> Sequence[RoundTranscript]:
        """Transcripts of the recorded rounds; empty if nothing was trained."""

    @property
    def statistics(self) -> ChannelStatistics:
        """Constants that private images are normalised with."""

    def view(self, adversary: ThreatModel) -> AdversaryView:
        """Return what an adversary has.

        Raises:
            ThreatModelError: nobody could give this adversary what it knows.
        """

    def undefended_reference(self) -> AttackTarget:
        """Return the same clients and images with nothing hidden.

        Raises:
            AttackError: it cannot be computed; the message says why.
        """

    def about(self) -> dict[str, Any]:
        """Return the entries that describe it in the file of an attack's result."""

    def accuracies(self) -> Mapping[int, float | None]:
        """Return the test accuracy after each round; empty if nothing was trained."""
