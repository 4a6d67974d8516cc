"""A run whose server recorded transcripts, opened to attack it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from instahide_fl.attacks.layers.linear_layers import build_network
from instahide_fl.audit.candidates import load_candidates
from instahide_fl.audit.membership import Membership, read_membership
from instahide_fl.audit.scoring.ground_truth import GroundTruth, asked_about
from instahide_fl.audit.undefended import (
    undefended_config,
    undefended_transcripts,
    with_images,
)
from instahide_fl.config import Config, parse_rounds
from instahide_fl.data.datasets import augmentation_for
from instahide_fl.errors import AttackError, OutputError, TranscriptError
from instahide_fl.metrics.candidates import Candidates
from instahide_fl.models.arrays import shared_buffers
from instahide_fl.run_folder import CONFIG, RunFolder
from instahide_fl.transcript.build_view import build_view, read_truths
from instahide_fl.transcript.recorded import (
    HOW_TO_RECORD,
    RoundTranscript,
    read_transcript,
    recorded_rounds,
)
from instahide_fl.transcript.threat_model import ThreatModel
from instahide_fl.transcript.truth import Truths
from instahide_fl.transcript.view import AdversaryView
from instahide_fl.types import ChannelStatistics


@dataclass(frozen=True)
class RecordedRun:
    """A run whose server recorded transcripts.

    Attributes:
        folder: The run's folder.
        config: The run's settings.
        transcripts: The rounds to attack, at least one.
        truths: The truth of every client in these rounds.
        candidates: Images that no client trained on; None without the truth, or if
            the data set is no longer there.
    """

    folder: RunFolder
    config: Config
    transcripts: Sequence[RoundTranscript]
    truths: Truths
    candidates: Candidates | None = None

    @property
    def statistics(self) -> ChannelStatistics:
        """Constants that private images are normalised with."""
        return self.transcripts[0].statistics

    @cached_property
    def ground_truth(self) -> GroundTruth | None:
        """What the clients hid, prepared for scoring; None if it was not recorded."""
        if not self.truths:
            return None
        first = self.transcripts[0]
        augmentation = augmentation_for(self.config.data, first.image_shape)
        return GroundTruth(
            truths=self.truths,
            statistics=self.statistics,
            num_classes=first.num_classes,
            augmentation=augmentation,
            sign_invariant=self.config.sign_invariant,
            candidates=self.candidates,
            membership=self._membership,
        )

    def view(self, adversary: ThreatModel) -> AdversaryView:
        """Return what an adversary has of the run."""
        membership = self._membership
        view = build_view(
            adversary=adversary,
            config=self.config,
            transcripts=self.transcripts,
            truths=self.truths,
            buffers=self._buffers,
            candidates=membership.candidates if membership else None,
        )
        mixed = asked_about(adversary, self.ground_truth)
        return replace(view, mixed_candidates=mixed)

    def undefended_reference(self) -> RecordedRun:
        """Return the same clients in the same rounds with nothing hidden.

        Raises:
            AttackError: what they would have sent is not known.
        """
        if self.config.record.crafted != "none":
            raise AttackError("the parameters were crafted for this run's encodings")
        transcripts, truths = undefended_transcripts(
            self.config, self.transcripts, self.truths
        )
        config = undefended_config(self.config)
        return RecordedRun(self.folder, config, transcripts, truths, self.candidates)

    def about(self) -> dict[str, Any]:
        """Return which rounds were recorded, and the largest batch in them."""
        rounds = [transcript.round for transcript in self.transcripts]
        sizes = {u.num_examples for t in self.transcripts for u in t.updates.values()}
        return {
            "round": rounds[0] if len(rounds) == 1 else rounds,
            "batch_size": max(sizes, default=0),
        }

    def accuracies(self) -> Mapping[int, float | None]:
        """Return the test accuracy after each round; None where it was not tested."""
        return {row["round"]: row["test_accuracy"] for row in self.folder.metrics()}

    @cached_property
    def _membership(self) -> Membership | None:
        last_round = self.transcripts[-1].round
        return read_membership(self.folder, self.config, last_round)

    @cached_property
    def _buffers(self) -> list[str]:
        first = self.transcripts[0]
        model = build_network(self.config, first.image_shape, first.num_classes)
        return list(shared_buffers(model))


def open_recorded_run(path: Path, rounds: str = "") -> RecordedRun:
    """Open a run to attack it.

    Args:
        path: The run's folder.
        rounds: The rounds to attack, as in `record.rounds`; empty takes all recorded
            ones.

    Raises:
        OutputError: there is no run.
        ConfigError: its settings, or `rounds`, are not valid.
        TranscriptError: no round was recorded, or not the ones asked for; the truth of
            a client is missing; or a file is damaged.
        AttackError: no client trained on any image in these rounds.
    """
    folder = RunFolder(path)
    if not (path / CONFIG).is_file():
        raise OutputError(f"{path} is not a run folder (no {CONFIG})")
    numbers = _chosen_rounds(path, rounds)
    transcripts = [read_transcript(path, number) for number in numbers]
    truths = read_truths(path, transcripts)
    _check_truths(path, transcripts, truths)
    transcripts = with_images(transcripts, truths)
    if not transcripts:
        raise AttackError(
            f"no client of {path} trained on any image in the recorded rounds: record "
            f"more of them"
        )
    config, first, candidates = folder.config(), transcripts[0], None
    if truths:
        candidates = load_candidates(config, first.statistics, first.image_shape)
    return RecordedRun(folder, config, transcripts, truths, candidates)


def _chosen_rounds(path: Path, rounds: str) -> list[int]:
    """Return the recorded rounds that were asked for, at least one."""
    recorded = recorded_rounds(path)
    if not recorded:
        raise TranscriptError(f"{path} has no transcript: {HOW_TO_RECORD}")
    ranges = parse_rounds(rounds or "all")
    chosen = [
        number
        for number in recorded
        if any(first <= number <= last for first, last in ranges)
    ]
    for first, last in ranges:
        if first == last and first not in recorded:
            read_transcript(path, int(first))  # raises, and says which rounds there are
    if not chosen:
        read_transcript(path, int(ranges[0][0]))  # raises as well
    return chosen


def _check_truths(
    path: Path, transcripts: Sequence[RoundTranscript], truths: Truths
) -> None:
    for transcript in transcripts:
        number = transcript.round
        absent = [c for c in transcript.updates if (number, c) not in truths]
        if absent:
            raise TranscriptError(
                f"the truth of client {absent[0]} in round {number} of {path} was "
                f"not written, and without it an attack cannot be scored: simulate the "
                f"run again with --set record.truth=true"
            )
