"""What an attack did to its target, and how that is written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instahide_fl.attacks.base import Attack, Reconstruction
from instahide_fl.audit.attack_target import AttackTarget
from instahide_fl.audit.scoring.attack_scores import AttackScores
from instahide_fl.audit.scoring.link_scores import score_client_links
from instahide_fl.audit.scoring.verdict import NOT_SCORED, beats_baseline, verdict
from instahide_fl.config import Config
from instahide_fl.files import write_text
from instahide_fl.transcript.threat_model import ThreatModel, threat_model


@dataclass(frozen=True)
class AttackResult:
    """What an attack did to its target.

    Attributes:
        attack: The attack with its settings.
        threat_model: The adversary.
        attack_target: What was attacked.
        seed: The seed of the attack.
        seconds: The time that the attack took, without the undefended reference.
        reconstruction: What the attack returned.
        scores: The scores of all rounds together.
        by_round: The scores of each round, if there are several; empty otherwise.
        undefended_scores: The scores of the same attack where nothing is hidden; None
            if it was not run there.
        why_no_reference: Why it was not run there; empty if it was.
    """

    attack: Attack
    threat_model: ThreatModel
    attack_target: AttackTarget
    seed: int
    seconds: float
    reconstruction: Reconstruction
    scores: AttackScores
    by_round: Mapping[int, AttackScores]
    undefended_scores: AttackScores | None
    why_no_reference: str

    @property
    def file_stem(self) -> str:
        """The name of its files; it names any adversary other than the usual one."""
        usual = adversary_for(self.attack, self.attack_target.config)
        if self.threat_model.name == usual.name:
            return self.attack.name
        return f"{self.attack.name}-as-{self.threat_model.name}"

    @property
    def title(self) -> str:
        """Attack, adversary and verdict in one line, for pictures."""
        return f"{self.attack.name} by {self.threat_model.name}: {self.verdict}"

    @property
    def verdict(self) -> str:
        """The verdict in words; see `audit.scoring.verdict`."""
        if self.attack_target.ground_truth is None:
            return NOT_SCORED
        return verdict(self.threat_model, self.scores, self.undefended_scores)

    def to_json(self) -> dict[str, Any]:
        """Return what is written to attacks/NAME.json."""
        config = self.attack_target.config
        return {
            "attack": self.attack.name,
            "threat_model": self.threat_model.name,
            "target": self.reconstruction.target,
            "method": config.instahide.method,
            "scope": config.instahide.scope,
            "num_mixed": config.instahide.num_mixed,
            "defense": config.defense.description,
            **self.attack_target.about(),
            "images": self.scores.reconstructions,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "settings": self.attack.model_dump(mode="json", by_alias=True),
            **self._adaptive_json(),
            **self.scores.to_json(),
            "control": self._undefended_json(),
            "by_round": self._rounds_json(),
            "diagnostics": self._diagnostics(),
            "verdict": self.verdict,
        }

    def _adaptive_json(self) -> dict[str, Any]:
        """Return what the attack made of the defence, if it says so."""
        adaptation = self.reconstruction.adaptation
        return {"adaptive": dict(adaptation)} if adaptation else {}

    def _undefended_json(self) -> dict[str, Any]:
        if self.undefended_scores is None:
            return {"absent": self.why_no_reference}
        return {
            "method": "none",
            "succeeds": beats_baseline(self.undefended_scores),
            **self.undefended_scores.to_json(),
        }

    def _rounds_json(self) -> list[dict[str, Any]]:
        accuracy = self.attack_target.accuracies()
        return [
            {
                "round": number,
                "test_accuracy": accuracy.get(number),
                **scores.to_json()["metrics"],
            }
            for number, scores in self.by_round.items()
        ]

    def _diagnostics(self) -> dict[str, Any]:
        truth = self.attack_target.ground_truth
        return {
            **self.reconstruction.diagnostics,
            "clients": [
                {
                    "client": recovered.client,
                    "round": recovered.round,
                    **recovered.diagnostics,
                    **score_client_links(recovered.links, recovered.client, truth),
                }
                for recovered in self.reconstruction.recovered
            ],
        }


def adversary_for(attack: Attack, config: Config, name: str = "") -> ThreatModel:
    """Return the adversary that an attack is run as.

    Args:
        attack: The attack, which names its own usual adversary.
        config: The settings of what is attacked. Under secure aggregation the honest
            server sees sums alone.
        name: The name of another adversary; empty takes the attack's own.

    Raises:
        ConfigError: there is no adversary of this name.
    """
    usual = attack.threat_model
    if usual == "honest-server" and config.secure_aggregation.enabled:
        usual = "secure-aggregation-server"
    return threat_model(name or usual)


def save_result(result: AttackResult, folder: Path) -> Path:
    """Write NAME.json, or NAME-as-ADVERSARY.json for another than the usual one.

    Args:
        result: The result of an attack.
        folder: The folder to write to; it is made if it is not there.

    Returns:
        The file.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / f"{result.file_stem}.json"
    write_text(path, json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")
    return path
