"""Finished runs and studies as pandas frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from instahide_fl.config import Config
from instahide_fl.data.data_report import DataReport
from instahide_fl.errors import OutputError
from instahide_fl.report.attack_rows import (
    AttackFile,
    SkippedAttack,
    attack_files,
    skipped_attacks,
)
from instahide_fl.run_folder import (
    CONFIG,
    DATA_REPORT,
    FAILURE,
    PROVENANCE,
    RunFolder,
)
from instahide_fl.study.folder import STATE, StudyFolder

_SUMMARY_COLUMNS = (
    "final_accuracy",
    "best_accuracy",
    "final_accuracy_encoded",
    "trained",
    "chance_bound",
    "validation_accuracy",
    "best_validation_accuracy",
    "test_accuracy_at_best_validation",
    "final_loss",
    "rounds",
    "seconds",
    "bytes_up",
    "bytes_down",
    "failures",
    "epsilon",
    "delta",
    "privacy_unit",
)
"""The columns of a study's runs that come from summary.json, where it has them."""


@dataclass(frozen=True)
class Run:
    """The content of a run's folder.

    Attributes:
        path: The folder.
        summary: The content of summary.json; empty if the run did not finish.
        provenance: The content of provenance.json.
        data_report: The content of data-report.json; None in runs of older versions.
        failure: The reason why the run ended early; empty if it did not.
        attack_files: The results of attacks on the run and on its audits.
        skipped_attacks: The attacks that its audits could not make.
    """

    path: Path
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    data_report: DataReport | None
    failure: str
    attack_files: Sequence[AttackFile]
    skipped_attacks: Sequence[SkippedAttack]

    @cached_property
    def config(self) -> Config:
        """The run's settings."""
        return RunFolder(self.path).config()

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a round, with the columns of metrics.jsonl."""
        return pd.DataFrame(RunFolder(self.path).metrics())

    @cached_property
    def attacks(self) -> pd.DataFrame:
        """One row an attack: adversary, verdict, similarities, baselines, reference.

        Similarities are SSIM in the better sign. What an attack did not measure is
        absent.
        """
        return pd.DataFrame([attack_file.row() for attack_file in self.attack_files])

    def results(self) -> dict[str, Any]:
        """Return the run's results as one row of a table."""
        totals = {
            name: self.summary[name]
            for name in _SUMMARY_COLUMNS
            if name in self.summary
        }
        rounds = totals.get("rounds") or 0
        per_round = {
            f"{name}_per_round": totals[name] / rounds
            for name in ("seconds", "bytes_up")
            if rounds and name in totals
        }
        return {**totals, **per_round}


@dataclass(frozen=True)
class Member:
    """One run of a study.

    Attributes:
        name: The name of the run.
        method: The method that the run belongs to.
        axes: The values of the varied settings, by dotted name.
        seed: The seed of the simulation.
        status: "finished", "failed" or "missing".
        reason: The reason why the run failed; empty if it did not.
        run: The content of its folder; None if there is no folder.
    """

    name: str
    method: str
    axes: Mapping[str, Any]
    seed: int
    status: str
    reason: str
    run: Run | None

    @property
    def key(self) -> dict[str, Any]:
        """The columns that tell this run from others."""
        return {
            "name": self.name,
            "method": self.method,
            **self.axes,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Study:
    """Several runs that are compared.

    Attributes:
        path: The study's folder; the first run's where runs were put side by side.
        title: The title, as in the study file.
        description: The content of study.json.
        members: The study's runs.
    """

    path: Path
    title: str
    description: Mapping[str, Any]
    members: Sequence[Member]

    @property
    def axes(self) -> list[str]:
        """The settings that are varied, by dotted name."""
        return list(self.description["axes"])

    @property
    def tuned_variants(self) -> Sequence[Mapping[str, Any]]:
        """The trials and the choice of each variant, as in study.json."""
        return tuple(self.description.get("tuning", {}).get("variants", ()))

    @property
    def accuracy_column(self) -> str:
        """The column of `runs` that is reported as accuracy."""
        if self.description.get("tuning", {}).get("report") == "best-validation":
            return "test_accuracy_at_best_validation"
        return "final_accuracy"

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial: method, axes, settings, validation accuracy, status, choice.

        A setting that a method's trials do not vary is absent.
        """
        rows = [
            {
                "method": variant["method"],
                **variant["axes"],
                "trial": trial["trial"],
                **trial["settings"],
                "validation_accuracy": trial["validation_accuracy"],
                "status": trial["status"],
                "chosen": trial["trial"] == variant["chosen_trial"],
            }
            for variant in self.tuned_variants
            for trial in variant["trials"]
        ]
        return pd.DataFrame(rows)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a run: method, axes, seed, status and results."""
        rows = [
            {
                **member.key,
                "status": member.status,
                "reason": member.reason,
                **(member.run.results() if member.run else {}),
            }
            for member in self.members
        ]
        return pd.DataFrame(rows)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """The rounds of all runs, with the columns that tell runs apart."""
        return _concatenated(
            [(member.key, member.run.rounds) for member in self.members if member.run]
        )

    @cached_property
    def attacks(self) -> pd.DataFrame:
        """The attacks on all runs, with the columns that tell runs apart."""
        return _concatenated(
            [(member.key, member.run.attacks) for member in self.members if member.run]
        )


def load_run(path: Path | str) -> Run:
    """Read a run's folder.

    Args:
        path: The run's folder; the run need not be finished.

    Raises:
        OutputError: the folder is not a run's, or a file in it is damaged.

    Example:
        >>> from instahide_fl import load_run
        >>> run = load_run("runs/digits")
        >>> list(run.rounds.columns[:2])
        ['round', 'test_accuracy']
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        hint = " (it is a study: use load_study)" if (path / STATE).is_file() else ""
        raise OutputError(f"{path} is not a run folder: it has no {CONFIG}{hint}")
    folder = RunFolder(path)
    return Run(
        path=path,
        summary=folder.summary(),
        provenance=folder.read_json(PROVENANCE),
        data_report=_read_data_report(folder),
        failure=str(folder.read_json(FAILURE).get("message", "")),
        attack_files=tuple(attack_files(path)),
        skipped_attacks=tuple(skipped_attacks(path)),
    )


def load_study(path: Path | str) -> Study:
    """Read a study's folder, finished or not.

    Args:
        path: The folder that `instahide-fl compare` wrote.

    Raises:
        OutputError: the folder is not a study's, or a file in it is damaged.

    Example:
        >>> from instahide_fl import load_study
        >>> study = load_study("studies/digits")
        >>> sorted(study.runs["status"].unique())
        ['finished']
    """
    path = Path(path)
    if not (path / STATE).is_file():
        hint = " (it is a run: use load_run)" if (path / CONFIG).is_file() else ""
        raise OutputError(f"{path} is not a study folder: it has no {STATE}{hint}")
    state = StudyFolder(path).state()
    try:
        members = tuple(_read_member(path, run) for run in state["runs"])
        return Study(path, state["title"], state, members)
    except (KeyError, TypeError) as error:
        raise OutputError(f"{path / STATE} is damaged: {error} is missing") from None


def study_of_runs(runs: Sequence[Run]) -> Study:
    """Put runs side by side as if a study had made them: each is a method of its own.

    Args:
        runs: The runs to compare, at least one.
    """
    names = _distinct_names([run.path for run in runs])
    members = [
        Member(
            name=name,
            method=name,
            axes={},
            seed=run.config.seed,
            status="finished"
            if run.summary
            else "failed"
            if run.failure
            else "missing",
            reason=run.failure,
            run=run,
        )
        for name, run in zip(names, runs, strict=True)
    ]
    description = {
        "question": "",
        "methods": names,
        "axes": {},
        "seeds": [],
        "audits": [],
    }
    return Study(runs[0].path, " and ".join(names), description, tuple(members))


def _read_member(study: Path, entry: Mapping[str, Any]) -> Member:
    """Read the run that an entry of study.json describes."""
    folder = study / entry["folder"]
    run = load_run(folder) if (folder / CONFIG).is_file() else None
    return Member(
        name=entry["name"],
        method=entry["method"],
        axes=entry["axes"],
        seed=entry["seed"],
        status=entry["status"],
        reason=entry["reason"] or (run.failure if run else ""),
        run=run,
    )


def _read_data_report(folder: RunFolder) -> DataReport | None:
    values = folder.read_json(DATA_REPORT)
    try:
        return DataReport.from_json(values) if values else None
    except ValueError as error:
        raise OutputError(f"{folder.path / DATA_REPORT} is damaged: {error}") from None


def _concatenated(
    frames: Sequence[tuple[Mapping[str, Any], pd.DataFrame]],
) -> pd.DataFrame:
    """Put the frames of runs below each other, each with its run's key in front."""
    keyed = []
    for key, frame in frames:
        if not frame.empty:
            keys = pd.DataFrame([key] * len(frame), index=frame.index)
            keyed.append(pd.concat([keys, frame], axis=1))
    return pd.concat(keyed, ignore_index=True) if keyed else pd.DataFrame()


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest trailing parts of paths that tell them apart."""
    full = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, full)) + 1):
        names = ["/".join(parts[-length:]) for parts in full]
        if len(set(names)) == len(names):
            break
    return names
