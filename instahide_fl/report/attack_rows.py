"""What attacks wrote into a run's folder, as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instahide_fl.errors import OutputError
from instahide_fl.run_folder import ATTACK_RESULTS, RunFolder
from instahide_fl.study.folder import AUDIT_FILE, AUDITS

# What was recovered, by the metric that shows it: files of earlier versions do not
# name their target. An attack on images is scored on labels and keys as well, so the
# images come first; "signs" are of an attack that exists no more.
_TARGET_OF_METRIC = {
    "signs": "mixture",
    "encoding": "encoding",
    "private": "private",
    "keys": "private",
    "labels": "labels",
    "components": "components",
    "statistics": "statistics",
    "membership": "membership",
}


@dataclass(frozen=True)
class AttackFile:
    """The file with the result of one attack.

    Attributes:
        path: The JSON file.
        audit: The name of the audit that it belongs to; empty where the run itself was
            attacked.
        start: The parameters that the audit started from, "initial" or "trained", or
            "training" where it attacked the training; empty where the run itself was
            attacked.
        data: The content of the file.
    """

    path: Path
    audit: str
    start: str
    data: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The attack, and the audit that it belongs to."""
        return attack_title(self.data["attack"], self.audit)

    @property
    def picture(self) -> Path | None:
        """The grid of images that was drawn beside it, if there is one."""
        return _existing(self.path.with_suffix(".png"))

    @property
    def pixels(self) -> Path | None:
        """The file with the images of that grid, if they were saved."""
        return _existing(self.path.with_suffix(".npz"))

    def row(self) -> dict[str, Any]:
        """Return the result as one row of a table, without the figures that it lacks.

        Similarity is that in the better sign, as in the verdict.
        """
        data = self.data
        metrics, control, rounds = data["metrics"], data["control"], data["round"]
        return {
            "audit": self.audit,
            "start": self.start,
            "attack": data["attack"],
            "threat_model": data["threat_model"],
            "target": data.get("target") or _target_of(metrics),
            "form": _form(data.get("adaptive", {})),
            "verdict": data["verdict"],
            **_image_scores(metrics, "private"),
            **_image_scores(metrics, "encoding"),
            **_label_scores(metrics),
            **_membership_scores(metrics),
            **_baseline_scores(data["baseline"]),
            "control_succeeds": control.get("succeeds"),
            "images": data["images"],
            **_identification(metrics.get("membership", {})),
            "batch_size": data["batch_size"],
            "attacked_rounds": len(rounds) if isinstance(rounds, list) else 1,
            "seconds": data["seconds"],
            "attack_seed": data["seed"],
            "picture": str(self.picture or ""),
            "file": str(self.path),
        }


@dataclass(frozen=True)
class SkippedAttack:
    """An attack that an audit could not make.

    Attributes:
        audit: The name of the audit.
        attack: The name of the attack.
        reason: Why it does not apply.
    """

    audit: str
    attack: str
    reason: str


def attack_title(attack: str, audit: str) -> str:
    """Return an attack's name, followed by that of its audit if there is one."""
    return f"{attack}: {audit}" if audit else attack


def attack_files(run: Path) -> Iterator[AttackFile]:
    """Read the results of all attacks on a run, and on the audits below it.

    Args:
        run: The run's folder.

    Raises:
        OutputError: a file is damaged.
    """
    yield from _read_files(run, "", "")
    for folder in _audit_folders(run):
        audit = RunFolder(folder).read_json(AUDIT_FILE)
        name, start = audit.get("name", folder.name), audit.get("start", "")
        yield from _read_files(folder, name, start)


def skipped_attacks(run: Path) -> Iterator[SkippedAttack]:
    """Read which attacks the audits of a run could not make.

    Args:
        run: The run's folder.

    Raises:
        OutputError: a file is damaged.
    """
    for folder in _audit_folders(run):
        audit = RunFolder(folder).read_json(AUDIT_FILE)
        for attack, reason in audit.get("left_out", {}).items():
            yield SkippedAttack(audit["name"], attack, reason)


def _audit_folders(run: Path) -> list[Path]:
    return sorted(path.parent for path in (run / AUDITS).glob(f"*/{AUDIT_FILE}"))


def _read_files(folder: Path, audit: str, start: str) -> Iterator[AttackFile]:
    for path in sorted((folder / ATTACK_RESULTS).glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            attack_file = AttackFile(path, audit, start, data)
            attack_file.row()  # finds what is missing, before anything is drawn
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{path} is damaged: attack the run again") from error
        yield attack_file


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _target_of(metrics: Mapping[str, Any]) -> str:
    """Return what was recovered; empty where nothing was, or where it is not scored."""
    for metric, target in _TARGET_OF_METRIC.items():
        if metric in metrics:
            return target
    return ""


def _image_scores(metrics: Mapping[str, Any], kind: str) -> dict[str, float]:
    if kind not in metrics:
        return {}
    scores = metrics[kind]["sign_best"]
    return {
        **_folded_scores(metrics[kind], kind),
        **_identification(metrics[kind]),
        f"{kind}_images": metrics[kind]["count"],
        **_with_interval(scores["ssim"], f"{kind}_ssim"),
        f"{kind}_ssim_best": scores["ssim"]["best"],
        f"{kind}_share_above_0.5": scores["ssim"]["share_above_0.5"],
        f"{kind}_psnr_mean": scores["psnr"]["mean"],
    }


def _folded_scores(metrics: Mapping[str, Any], kind: str) -> dict[str, float]:
    """Return SSIM without signs, which files of earlier versions lack."""
    if "folded" not in metrics:
        return {}
    ssim, baselines = metrics["folded"]["ssim"], metrics["folded"]["baseline"]
    return {
        **_with_interval(ssim, f"{kind}_folded_ssim"),
        f"{kind}_folded_ssim_best": ssim["best"],
        f"{kind}_folded_baseline_ssim": max(
            scores["ssim"]["mean"] for scores in baselines.values()
        ),
    }


def _with_interval(summary: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return a mean, its spread and its interval, which earlier versions lack."""
    figures = {f"{name}_mean": summary["mean"], f"{name}_spread": summary["spread"]}
    if "interval" in summary:
        figures[f"{name}_low"], figures[f"{name}_high"] = summary["interval"]
    return figures


def _identification(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return how often the true image comes first among the most candidates."""
    identification = scores.get("identification", {})
    sizes = [int(size) for size in identification if size.isdigit()]
    if not sizes:  # files of earlier versions have none
        return {}
    ranked = identification[str(max(sizes))]
    return {
        "identified": ranked["top1"],
        "identified_of": max(sizes),
        "identified_images": ranked["images"],
        "identified_chance": ranked["class_chance"],
    }


def _label_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    labels = metrics.get("labels", {})
    hard, soft = labels.get("hard", {}), labels.get("soft", {})
    scores = {
        "labels_overlap": hard.get("overlap"),
        "labels_chance": hard.get("chance"),
        "soft_labels_error": soft.get("mean_error"),
        "soft_labels_uninformed_error": soft.get("uninformed_error"),
    }
    return {name: value for name, value in scores.items() if value is not None}


def _form(adaptive: Mapping[str, Any]) -> str:
    """Return how an attack met a defence; empty if there was none."""
    return adaptive["form"] if adaptive.get("defense", "none") != "none" else ""


def _membership_scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    if "membership" not in metrics:
        return {}
    figures = metrics["membership"]
    return {
        "membership_auc": figures["auc"],
        "membership_auc_low": figures["auc_interval"][0],
        "membership_auc_high": figures["auc_interval"][1],
        **{
            f"membership_tpr_at_fpr_{rate}": share
            for rate, share in figures["tpr_at_fpr"].items()
        },
        "membership_held_out": figures["non_members"],
        "membership_test_accuracy": figures.get("test_accuracy"),
    }


def _baseline_scores(baselines: Mapping[str, Any]) -> dict[str, float]:
    columns = {
        "no_information": "baseline_ssim",
        "matched_noise": "noise_ssim",
        "other_images": "other_images_ssim",
    }
    means = {
        column: private["sign_best"]["ssim"]["mean"]
        for name, column in columns.items()
        if (private := baselines.get(name, {}).get("private"))
    }
    return {**means, "best_baseline_ssim": max(means.values())} if means else {}
