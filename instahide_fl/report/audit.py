"""An audit: attack a run or a challenge, score what came out, and write it down."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from instahide_fl.attacks.attack import Advance, Attack, Reconstruction
from instahide_fl.attacks.control import Truths, hides_nothing
from instahide_fl.attacks.scoring.links import link_scores
from instahide_fl.attacks.scoring.score import score
from instahide_fl.attacks.scoring.scores import Scores
from instahide_fl.attacks.scoring.statistics import score_statistics
from instahide_fl.attacks.scoring.verdict import NOT_SCORED, beats_baseline, verdict
from instahide_fl.config import Config
from instahide_fl.data.augment import Augmentation
from instahide_fl.errors import AttackError
from instahide_fl.files import write_text
from instahide_fl.rng import stream
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.threat_model import ThreatModel, threat_model
from instahide_fl.transcript.view import AdversaryView
from instahide_fl.types import ChannelStatistics

RESULTS = "attacks"


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


@dataclass(frozen=True)
class AttackResult:
    """What an attack did to its subject.

    Attributes:
        attack: with its settings.
        threat_model: the adversary.
        subject: what was attacked.
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
    subject: Subject
    seed: int
    seconds: float
    reconstruction: Reconstruction
    scores: Scores
    by_round: Mapping[int, Scores]
    control: Scores | None
    control_note: str

    @property
    def file_stem(self) -> str:
        """What its files are called; another adversary than the usual is named."""
        usual = adversary_for(self.attack, self.subject.config)
        if self.threat_model.name == usual.name:
            return self.attack.name
        return f"{self.attack.name}-as-{self.threat_model.name}"

    @property
    def verdict(self) -> str:
        """In words; see `attacks.scoring.verdict`."""
        if not self.subject.truths:
            return NOT_SCORED
        return verdict(self.threat_model, self.scores, self.control)

    def to_json(self) -> dict[str, Any]:
        """Return what is written to attacks/NAME.json."""
        found = self.scores.to_json()
        return {
            "attack": self.attack.name,
            "threat_model": self.threat_model.name,
            "method": self.subject.config.instahide.method,
            "scope": self.subject.config.instahide.scope,
            "num_mixed": self.subject.config.instahide.num_mixed,
            "defense": self.subject.config.defense.in_words,
            **self.subject.about(),
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
        accuracy = self.subject.accuracies()
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
                    **link_scores(one.links, one.client, self.subject.truths),
                }
                for one in self.reconstruction.recovered
            ],
        }


def adversary_for(attack: Attack, config: Config, name: str = "") -> ThreatModel:
    """Return the adversary that an attack is run as.

    Args:
        attack: with its own usual adversary.
        config: of what is attacked. Under secure aggregation the honest server sees
            sums alone.
        name: of another adversary; empty takes the attack's own.

    Raises:
        ConfigError: there is no adversary of this name.
    """
    own = attack.threat_model
    if own == "honest-server" and config.secure_aggregation.enabled:
        own = "secure-aggregation-server"
    return threat_model(name or own)


def run_attack(
    subject: Subject,
    attack: Attack,
    model: ThreatModel,
    seed: int,
    advance: Advance,
    with_control: bool = True,
) -> AttackResult:
    """Attack, and score what came out if the truth is known.

    Args:
        subject: a recorded run or a challenge.
        attack: with its settings.
        model: the adversary.
        seed: of starting points and of the baselines' noise.
        advance: told how far the attack is; the control counts as much as the attack.
        with_control: also attack the same clients where nothing is hidden.

    Raises:
        ThreatModelError: the adversary lacks what the attack needs.
        AttackError: the attack does not apply here.
    """
    hides = not hides_nothing(subject.config)
    note = _no_control(attack, hides, with_control)
    parts = 1 if note else 2
    start = time.perf_counter()
    found = _reconstruct(
        subject, attack, model, seed, lambda done, total: advance(done, parts * total)
    )
    seconds = time.perf_counter() - start
    scores = _scored(subject, found, seed)
    control: Scores | None = None if hides else scores
    if not note:
        try:
            control = _control(
                *(subject, attack, model, seed),
                lambda done, total: advance(total + done, 2 * total),
            )
        except AttackError as error:
            note = str(error)
    by_round = _by_round(subject, found, seed)
    return AttackResult(
        attack, model, subject, seed, seconds, found, scores, by_round, control, note
    )


def _no_control(attack: Attack, hides: bool, wanted: bool) -> str:
    """Return why there is no second attack; empty if there is one."""
    if not hides:
        return "nothing is hidden here in the first place"
    return attack.no_control if wanted else "not asked for"


def _control(
    subject: Subject, attack: Attack, model: ThreatModel, seed: int, advance: Advance
) -> Scores:
    plain = subject.control()
    return _scored(plain, _reconstruct(plain, attack, model, seed, advance), seed)


def _reconstruct(
    subject: Subject, attack: Attack, model: ThreatModel, seed: int, advance: Advance
) -> Reconstruction:
    view = subject.view(model)
    attack.check(view)
    return attack.reconstruct(view, stream(seed, "attack", attack.name), advance)


def _scored(subject: Subject, found: Reconstruction, seed: int) -> Scores:
    if not subject.truths:
        return Scores.without_truth(found)
    scores = score(
        found,
        subject.truths,
        subject.statistics,
        subject.num_classes,
        stream(seed, "score"),
        subject.augmentation,
    )
    off = score_statistics(found, subject.truths, subject.config, subject.transcripts)
    return replace(scores, statistics=off)


def _by_round(subject: Subject, found: Reconstruction, seed: int) -> dict[int, Scores]:
    rounds = sorted({one.round for one in found.recovered})
    if len(rounds) < 2:
        return {}
    return {
        number: _scored(
            subject,
            replace(
                found,
                recovered=tuple(one for one in found.recovered if one.round == number),
            ),
            seed,
        )
        for number in rounds
    }


def save_result(result: AttackResult, folder: Path) -> Path:
    """Write NAME.json, or NAME-as-ADVERSARY.json for another than the usual one.

    Args:
        result: of an attack.
        folder: where to; made if it is not there.

    Returns:
        The file.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / f"{result.file_stem}.json"
    write_text(path, json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")
    return path
