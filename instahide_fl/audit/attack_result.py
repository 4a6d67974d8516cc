"""What an attack did to its target, and how that is written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instahide_fl.attacks.base import Attack, Reconstruction
from instahide_fl.audit.attack_target import Subject
from instahide_fl.audit.scoring.attack_scores import Scores
from instahide_fl.audit.scoring.link_scores import link_scores
from instahide_fl.audit.scoring.verdict import NOT_SCORED, beats_baseline, verdict
from instahide_fl.config import Config
from instahide_fl.files import write_text
from instahide_fl.transcript.threat_model import ThreatModel, threat_model

RESULTS = "attacks"


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
        """In words; see `audit.scoring.verdict`."""
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
            "defense": self.subject.config.defense.description,
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
