"""An audit of a recorded run: attack it, score what came out, and write it down."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from instahide_fl.attacks.attack import Advance, Attack, Reconstruction
from instahide_fl.attacks.control import Truths, control_of, undefended
from instahide_fl.attacks.linear_layers import build_network
from instahide_fl.attacks.link_scoring import link_scores
from instahide_fl.attacks.scores import Scores
from instahide_fl.attacks.scoring import score
from instahide_fl.attacks.verdict import beats_baseline, verdict
from instahide_fl.config import Config, parse_rounds
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import augmentation_for
from instahide_fl.errors import AttackError, OutputError, TranscriptError
from instahide_fl.files import write_text
from instahide_fl.models.arrays import shared_buffers
from instahide_fl.rng import stream
from instahide_fl.run_folder import CONFIG, RunFolder
from instahide_fl.transcript.recorded import (
    HOW_TO_RECORD,
    RoundTranscript,
    read_transcript,
    recorded_rounds,
)
from instahide_fl.transcript.threat_model import (
    AdversaryView,
    ThreatModel,
    build_view,
    read_truths,
)

RESULTS = "attacks"


@dataclass(frozen=True)
class RecordedRun:
    """A run whose server kept transcripts.

    Attributes:
        folder: of the run.
        config: its settings.
        transcripts: of the rounds to attack, at least one.
        truths: of every client in them.
    """

    folder: RunFolder
    config: Config
    transcripts: Sequence[RoundTranscript]
    truths: Truths

    @property
    def augmentation(self) -> Augmentation | None:
        """What clients did to private images before mixing."""
        return augmentation_for(self.config.data, self.transcripts[0].image_shape)

    def view(self, model: ThreatModel) -> AdversaryView:
        """Return what an adversary has of the run."""
        return build_view(
            model, self.config, self.transcripts, self.truths, self._buffers
        )

    def control(self) -> RecordedRun:
        """Return the same clients in the same rounds with nothing hidden."""
        transcripts, truths = control_of(self.config, self.transcripts, self.truths)
        return RecordedRun(self.folder, undefended(self.config), transcripts, truths)

    @property
    def is_crafted(self) -> bool:
        """Whether clients were sent crafted parameters."""
        return self.config.record.crafted != "none"

    @cached_property
    def _buffers(self) -> list[str]:
        first = self.transcripts[0]
        model = build_network(self.config, first.image_shape, first.num_classes)
        return list(shared_buffers(model))


def open_recorded_run(path: Path, rounds: str = "") -> RecordedRun:
    """Open a run to attack it.

    Args:
        path: its folder.
        rounds: those to attack, as in `record.rounds`; empty takes all recorded ones.

    Raises:
        OutputError: there is no run.
        ConfigError: its settings, or `rounds`, are not valid.
        TranscriptError: no round was recorded, not these ones, without the truth, or a
            file is damaged.
    """
    folder = RunFolder(path)
    if not (path / CONFIG).is_file():
        raise OutputError(f"{path} is not a run folder (no {CONFIG})")
    known = recorded_rounds(path)
    if not known:
        raise TranscriptError(f"{path} has no transcript: {HOW_TO_RECORD}")
    wanted = parse_rounds(rounds or "all")
    chosen = [
        number
        for number in known
        if any(first <= number <= last for first, last in wanted)
    ]
    for first, last in wanted:
        if first == last and first not in known:
            read_transcript(path, int(first))  # says which rounds there are
    if not chosen:
        read_transcript(path, int(wanted[0][0]))
    transcripts = [read_transcript(path, number) for number in chosen]
    truths = read_truths(path, transcripts)
    for seen in transcripts:
        if absent := [one for one in seen.updates if (seen.round, one) not in truths]:
            raise TranscriptError(
                f"the truth of client {absent[0]} in round {seen.round} of {path} was "
                f"not written, and without it an attack cannot be scored: simulate the "
                f"run again with --set record.truth=true"
            )
    return RecordedRun(folder, folder.config(), transcripts, truths)


@dataclass(frozen=True)
class AttackResult:
    """What an attack did to a run.

    Attributes:
        attack: with its settings.
        threat_model: the adversary.
        run: what was attacked.
        seed: of the attack.
        seconds: it took, without the control.
        reconstruction: what it returned.
        scores: of all rounds together.
        by_round: scores of each round, if there are several.
        control: scores of the same attack where nothing is hidden; None if it was not
            run.
        control_note: why it was not.
    """

    attack: Attack
    threat_model: ThreatModel
    run: RecordedRun
    seed: int
    seconds: float
    reconstruction: Reconstruction
    scores: Scores
    by_round: Mapping[int, Scores]
    control: Scores | None
    control_note: str

    @property
    def verdict(self) -> str:
        """In words; see `attacks.verdict`."""
        return verdict(self.threat_model, self.scores, self.control)

    def to_json(self) -> dict[str, Any]:
        """Return what is written to attacks/NAME.json."""
        rounds = [seen.round for seen in self.run.transcripts]
        sizes = {
            u.num_examples for t in self.run.transcripts for u in t.updates.values()
        }
        found = self.scores.to_json()
        return {
            "attack": self.attack.name,
            "threat_model": self.threat_model.name,
            "method": self.run.config.instahide.method,
            "scope": self.run.config.instahide.scope,
            "num_mixed": self.run.config.instahide.num_mixed,
            "round": rounds[0] if len(rounds) == 1 else rounds,
            "batch_size": max(sizes, default=0),
            "images": self.scores.reconstructions,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "settings": self.attack.model_dump(mode="json", by_alias=True),
            **found,
            "control": self._control_json(),
            "by_round": self._rounds_json(),
            "diagnostics": self._diagnostics(),
            "verdict": self.verdict,
        }

    def _control_json(self) -> dict[str, Any]:
        if self.control is None:
            return {"absent": self.control_note}
        return {
            "method": "none",
            "succeeds": beats_baseline(self.control),
            **self.control.to_json(),
        }

    def _rounds_json(self) -> list[dict[str, Any]]:
        accuracy = {
            row["round"]: row["test_accuracy"] for row in self.run.folder.metrics()
        }
        return [
            {
                "round": number,
                "test_accuracy": accuracy.get(number),
                **one.to_json()["metrics"],
            }
            for number, one in self.by_round.items()
        ]

    def _diagnostics(self) -> dict[str, Any]:
        return {
            **self.reconstruction.diagnostics,
            "clients": [
                {
                    "client": one.client,
                    "round": one.round,
                    **one.diagnostics,
                    **link_scores(one.links, one.client, self.run.truths),
                }
                for one in self.reconstruction.recovered
            ],
        }


def run_attack(
    run: RecordedRun,
    attack: Attack,
    model: ThreatModel,
    seed: int,
    advance: Advance,
    with_control: bool = True,
) -> AttackResult:
    """Attack a run and score what came out.

    Args:
        run: the recorded run.
        attack: with its settings.
        model: the adversary.
        seed: of starting points and of the baselines' noise.
        advance: told how far the attack is; the control counts as much as the attack.
        with_control: also attack the same clients where nothing is hidden.

    Raises:
        ThreatModelError: the adversary lacks what the attack needs.
        AttackError: the attack does not apply to this run.
    """
    note = _no_control(run, with_control)
    parts = 1 if note else 2
    start = time.perf_counter()
    found = _reconstruct(
        run, attack, model, seed, lambda done, total: advance(done, parts * total)
    )
    seconds = time.perf_counter() - start
    scores = _scored(run, found, seed)
    control: Scores | None = None
    plain: RecordedRun | None = None
    if run.config.instahide.method == "none":
        control = scores
    elif not note:
        try:
            plain = run.control()
        except AttackError as error:
            note = str(error)
    if plain is not None:
        tried = _reconstruct(
            plain,
            attack,
            model,
            seed,
            lambda done, total: advance(total + done, 2 * total),
        )
        control = _scored(plain, tried, seed)
    by_round = _by_round(run, found, seed)
    return AttackResult(
        attack, model, run, seed, seconds, found, scores, by_round, control, note
    )


def _no_control(run: RecordedRun, wanted: bool) -> str:
    """Return why there is no second attack; empty if there is one."""
    if run.config.instahide.method == "none":
        return "the run itself hides nothing"
    if run.is_crafted:
        return "the parameters were crafted for this run's encodings"
    return "" if wanted else "not asked for"


def _reconstruct(
    run: RecordedRun, attack: Attack, model: ThreatModel, seed: int, advance: Advance
) -> Reconstruction:
    view = run.view(model)
    view.require(attack.name, attack.needs)
    return attack.reconstruct(view, stream(seed, "attack", attack.name), advance)


def _scored(run: RecordedRun, found: Reconstruction, seed: int) -> Scores:
    first = run.transcripts[0]
    return score(
        found,
        run.truths,
        first.statistics,
        first.num_classes,
        stream(seed, "score"),
        run.augmentation,
    )


def _by_round(run: RecordedRun, found: Reconstruction, seed: int) -> dict[int, Scores]:
    rounds = sorted({one.round for one in found.recovered})
    if len(rounds) < 2:
        return {}
    return {
        number: _scored(
            run,
            replace(
                found,
                recovered=tuple(one for one in found.recovered if one.round == number),
            ),
            seed,
        )
        for number in rounds
    }


def save_result(result: AttackResult, folder: Path) -> Path:
    """Write NAME.json.

    Args:
        result: of an attack.
        folder: where to; made if it is not there.

    Returns:
        The file.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / f"{result.attack.name}.json"
    write_text(path, json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")
    return path
