"""What attacks wrote into a run's folder, as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instahide_fl.errors import OutputError
from instahide_fl.run_folder import RunFolder
from instahide_fl.study.folder import AUDIT, AUDITS

RESULTS = "attacks"


@dataclass(frozen=True)
class AttackFile:
    """What one attack found.

    Attributes:
        path: of its JSON file.
        audit: that it belongs to, by name; empty where the run itself was attacked.
        start: parameters that the audit started from, "initial" or "trained"; empty
            likewise.
        data: what the file holds.
    """

    path: Path
    audit: str
    start: str
    data: Mapping[str, Any]

    @property
    def picture(self) -> Path | None:
        """The grid that was drawn of it, if there is one."""
        return _existing(self.path.with_suffix(".png"))

    @property
    def pixels(self) -> Path | None:
        """The images in that grid, if they were kept."""
        return _existing(self.path.with_suffix(".npz"))

    def row(self) -> dict[str, Any]:
        """Return its figures side by side; those that it lacks are left out.

        Similarity is that in the better sign, as in the verdict.
        """
        data = self.data
        rounds = data["round"]
        control = data["control"]
        return {
            "audit": self.audit,
            "start": self.start,
            "attack": data["attack"],
            "threat_model": data["threat_model"],
            "target": _target(data["metrics"]),
            "verdict": data["verdict"],
            **_images(data["metrics"], "private"),
            **_images(data["metrics"], "encoding"),
            **_labels(data["metrics"]),
            **_baselines(data["baseline"]),
            "control_succeeds": control.get("succeeds"),
            "images": data["images"],
            "batch_size": data["batch_size"],
            "attacked_rounds": len(rounds) if isinstance(rounds, list) else 1,
            "seconds": data["seconds"],
            "attack_seed": data["seed"],
            "picture": str(self.picture or ""),
            "file": str(self.path),
        }


@dataclass(frozen=True)
class LeftOut:
    """An attack that an audit could not make, and why."""

    audit: str
    attack: str
    reason: str


def attack_files(run: Path) -> Iterator[AttackFile]:
    """Read what was found in a run, and in the audits below it.

    Raises:
        OutputError: a file is damaged.
    """
    yield from _files(run, "", "")
    for folder in _audits(run):
        told = RunFolder(folder).read_json(AUDIT)
        yield from _files(folder, told.get("name", folder.name), told.get("start", ""))


def left_out(run: Path) -> Iterator[LeftOut]:
    """Read which attacks a run's audits left out.

    Raises:
        OutputError: a file is damaged.
    """
    for folder in _audits(run):
        told = RunFolder(folder).read_json(AUDIT)
        for attack, reason in told.get("left_out", {}).items():
            yield LeftOut(told["name"], attack, reason)


def _audits(run: Path) -> list[Path]:
    return sorted(path.parent for path in (run / AUDITS).glob(f"*/{AUDIT}"))


def _files(folder: Path, audit: str, start: str) -> Iterator[AttackFile]:
    for path in sorted((folder / RESULTS).glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found = AttackFile(path, audit, start, data)
            found.row()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{path} is damaged: attack the run again") from error
        yield found


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _target(metrics: Mapping[str, Any]) -> str:
    for name in ("encoding", "private", "labels"):
        if name in metrics:
            return name
    return "statistics"


def _images(metrics: Mapping[str, Any], kind: str) -> dict[str, float]:
    if kind not in metrics:
        return {}
    found = metrics[kind]["sign_best"]
    return {
        f"{kind}_ssim_mean": found["ssim"]["mean"],
        f"{kind}_ssim_best": found["ssim"]["best"],
        f"{kind}_ssim_spread": found["ssim"]["spread"],
        f"{kind}_share_above_0.5": found["ssim"]["share_above_0.5"],
        f"{kind}_psnr_mean": found["psnr"]["mean"],
    }


def _labels(metrics: Mapping[str, Any]) -> dict[str, float]:
    labels = metrics.get("labels", {})
    hard, soft = labels.get("hard", {}), labels.get("soft", {})
    found = {
        "labels_overlap": hard.get("overlap"),
        "labels_chance": hard.get("chance"),
        "soft_labels_error": soft.get("mean_error"),
        "soft_labels_uninformed_error": soft.get("uninformed_error"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _baselines(baseline: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, column in (
        ("no_information", "baseline_ssim"),
        ("matched_noise", "noise_ssim"),
    ):
        if private := baseline.get(name, {}).get("private"):
            found[column] = private["sign_best"]["ssim"]["mean"]
    return found
