"""Finished runs and studies as pandas frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from instahide_fl.config import Config
from instahide_fl.errors import OutputError
from instahide_fl.report.attack_rows import (
    AttackFile,
    LeftOut,
    attack_files,
    left_out,
)
from instahide_fl.run_folder import (
    CONFIG,
    FAILURE,
    PROVENANCE,
    SUMMARY,
    RunFolder,
)
from instahide_fl.study.folder import STATE, StudyFolder

_RESULTS = (
    "final_accuracy",
    "best_accuracy",
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
"""What a row of a study takes from summary.json; what is not there is absent."""


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Attributes:
        path: the folder.
        summary: summary.json; empty if the run did not finish.
        provenance: what it was made with.
        failure: why it ended early; empty if it did not.
        attack_files: what attacks found, in the run and in its audits.
        left_out: attacks that its audits could not make.
    """

    path: Path
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    failure: str
    attack_files: Sequence[AttackFile]
    left_out: Sequence[LeftOut]

    @cached_property
    def config(self) -> Config:
        """Its settings."""
        return RunFolder(self.path).config()

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a round, with the columns of metrics.jsonl."""
        return pd.DataFrame(RunFolder(self.path).metrics())

    @cached_property
    def attacks(self) -> pd.DataFrame:
        """One row an attack: adversary, verdict, similarities, baselines, control.

        Similarities are SSIM in the better sign; what an attack lacks is absent.
        """
        return pd.DataFrame([one.row() for one in self.attack_files])

    def results(self) -> dict[str, Any]:
        """Return what a row of a table says about it."""
        known = {name: self.summary[name] for name in _RESULTS if name in self.summary}
        done = known.get("rounds") or 0
        each = {
            f"{name}_per_round": known[name] / done
            for name in ("seconds", "bytes_up")
            if done and name in known
        }
        return {**known, **each}


@dataclass(frozen=True)
class Member:
    """One run of a study.

    Attributes:
        name: of the run.
        method: that it belongs to.
        axes: values of what is varied, by setting.
        seed: of the simulation.
        status: "finished", "failed" or "missing".
        reason: why it failed.
        run: what is in its folder; None if there is nothing.
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
        """The columns that tell it from other runs."""
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
        path: of the study's folder; of the first run where runs were put together.
        title: as in the study file.
        description: what study.json says.
        members: its runs.
    """

    path: Path
    title: str
    description: Mapping[str, Any]
    members: Sequence[Member]

    @property
    def axes(self) -> list[str]:
        """Settings that are varied, by dotted name."""
        return list(self.description["axes"])

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a run: method, axes, seed, status and results."""
        rows = [
            {
                **one.key,
                "status": one.status,
                "reason": one.reason,
                **(one.run.results() if one.run else {}),
            }
            for one in self.members
        ]
        return pd.DataFrame(rows)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """The rounds of all runs, with the columns that tell runs apart."""
        return _together([(one, one.run.rounds) for one in self.members if one.run])

    @cached_property
    def attacks(self) -> pd.DataFrame:
        """The attacks on all runs, likewise."""
        return _together([(one, one.run.attacks) for one in self.members if one.run])


def load_run(path: Path | str) -> Run:
    """Read a run's folder.

    Args:
        path: the folder; the run need not be finished.

    Raises:
        OutputError: it is no run, or a file in it is damaged.

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
        path,
        folder.read_json(SUMMARY),
        folder.read_json(PROVENANCE),
        str(folder.read_json(FAILURE).get("message", "")),
        tuple(attack_files(path)),
        tuple(left_out(path)),
    )


def load_study(path: Path | str) -> Study:
    """Read a study's folder, finished or not.

    Args:
        path: the folder that `instahide-fl compare` wrote.

    Raises:
        OutputError: it is no study, or a file in it is damaged.

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
        members = tuple(_member(path, one) for one in state["runs"])
        return Study(path, state["title"], state, members)
    except (KeyError, TypeError) as error:
        raise OutputError(f"{path / STATE} is damaged: {error} is missing") from None


def together(runs: Sequence[Run]) -> Study:
    """Put runs side by side as if a study had made them: each is a method of its own.

    Args:
        runs: at least one.
    """
    names = _distinct_names([run.path for run in runs])
    members = [
        Member(
            name,
            name,
            {},
            run.config.seed,
            "finished" if run.summary else ("failed" if run.failure else "missing"),
            run.failure,
            run,
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


def _member(study: Path, told: Mapping[str, Any]) -> Member:
    folder = study / told["folder"]
    run = load_run(folder) if (folder / CONFIG).is_file() else None
    reason = told["reason"] or (run.failure if run else "")
    return Member(
        told["name"],
        told["method"],
        told["axes"],
        told["seed"],
        told["status"],
        reason,
        run,
    )


def _together(frames: Sequence[tuple[Member, pd.DataFrame]]) -> pd.DataFrame:
    """Put frames below each other, with the keys of their runs in front."""
    filled = []
    for one, frame in frames:
        if not frame.empty:
            keys = pd.DataFrame([one.key] * len(frame), index=frame.index)
            filled.append(pd.concat([keys, frame], axis=1))
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart."""
    full = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, full)) + 1):
        names = ["/".join(parts[-length:]) for parts in full]
        if len(set(names)) == len(names):
            break
    return names
