"""What the clients hid, opened once and prepared to score any number of attacks.

The scorers are handed what this module derives: the clients that an attack recovered
something of, each beside its own truth, and the private images of all clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from instahide_fl.attacks.base import Reconstruction, Recovered
from instahide_fl.audit.membership import Membership
from instahide_fl.audit.mixed_candidates import MixedCandidates, mix_candidates
from instahide_fl.audit.scoring.originals import Originals
from instahide_fl.data.augment import Augmentation
from instahide_fl.errors import TranscriptError
from instahide_fl.metrics.candidates import Candidates
from instahide_fl.transcript.aggregate import ALL_CLIENTS, truths_together
from instahide_fl.transcript.candidates import CandidateImages
from instahide_fl.transcript.threat_model import Knowledge, ThreatModel
from instahide_fl.transcript.truth import ClientTruth, Truths
from instahide_fl.types import ChannelStatistics


class RecoveredClient(NamedTuple):
    """What an attack recovered of one client, beside what the client hid.

    Attributes:
        recovered: The attack's part.
        truths: The client's truth: of one round, or of every recorded round where the
            attack put rounds together. At least one.
    """

    recovered: Recovered
    truths: Sequence[ClientTruth]


@dataclass(frozen=True)
class GroundTruth:
    """What all clients of an attack target hid.

    Attributes:
        truths: The truth of each client in each recorded round.
        statistics: Constants that private images are normalised with.
        num_classes: K.
        augmentation: The crops and flips of the run. Recovered encodings are then held
            against private images as they were cropped and mirrored. None compares
            with the originals.
        sign_invariant: Whether the network sees absolute values only. Encodings are
            then matched by absolute values: updates say nothing of their signs.
        candidates: Images that no client trained on, among which the true image of a
            reconstruction is ranked; None if there are none.
        membership: Which candidates were trained on; None if nothing was held out.
    """

    truths: Truths
    statistics: ChannelStatistics
    num_classes: int
    augmentation: Augmentation | None = None
    sign_invariant: bool = False
    candidates: Candidates | None = None
    membership: Membership | None = None

    @cached_property
    def originals(self) -> Originals:
        """The private images of all clients, each once."""
        return Originals.of(self.truths, self.statistics)

    @cached_property
    def mixed_candidates(self) -> MixedCandidates | None:
        """Private images among those that no client trained on; None without such."""
        if self.candidates is None or not len(self.candidates):
            return None
        return mix_candidates(self.originals, self.candidates)

    @property
    def augmented(self) -> bool:
        """Whether any private image was cropped or mirrored before mixing."""
        return any(truth.key.augmentation is not None for truth in self.truths.values())

    def for_reconstruction(self, reconstruction: Reconstruction) -> GroundTruth:
        """Return the truth to score a reconstruction with.

        Where the attack was on aggregates, all clients of a round are one.
        """
        clients = {recovered.client for recovered in reconstruction.recovered}
        return self._of_all_clients_as_one if ALL_CLIENTS in clients else self

    def recovered_clients(
        self, reconstruction: Reconstruction
    ) -> list[RecoveredClient]:
        """Put what was recovered of each client beside what the client hid.

        Raises:
            TranscriptError: the truth of a client is missing.
        """
        return [
            RecoveredClient(
                recovered, self.of_client(recovered.client, recovered.round)
            )
            for recovered in reconstruction.recovered
        ]

    def of_client(self, client: str, round_number: int = 0) -> list[ClientTruth]:
        """Return the truth of a client.

        Args:
            client: The client's key.
            round_number: The round; 0 for all recorded rounds, in their order.

        Raises:
            TranscriptError: it is missing.
        """
        truths = [
            truth
            for (number, name), truth in self.truths.items()
            if name == client and round_number in (0, number)
        ]
        if not truths:
            when = f"round {round_number}" if round_number else "every round"
            raise TranscriptError(
                f"the truth of client {client} is missing for {when}: scoring an "
                f"attack needs a simulation that ran with --set record.truth=true"
            )
        return truths

    @cached_property
    def _of_all_clients_as_one(self) -> GroundTruth:
        return replace(self, truths=truths_together(self.truths))


def asked_about(
    adversary: ThreatModel, ground_truth: GroundTruth | None
) -> CandidateImages | None:
    """Return the images that an adversary who has encodings asks about, if any.

    Args:
        adversary: The adversary.
        ground_truth: What the clients hid; None if nobody knows it.
    """
    if ground_truth is None or Knowledge.ENCODINGS not in adversary.knows:
        return None
    mixed = ground_truth.mixed_candidates
    return None if mixed is None else mixed.candidates
