"""What the trials of a study reached, and what is chosen by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

from instahide_fl.errors import DivergenceError, OutputError
from instahide_fl.run_folder import FAILURE, SUMMARY, RunFolder
from instahide_fl.study.plan import PlannedRun
from instahide_fl.study.tuning import TuningConfig

TrialStatus: TypeAlias = Literal["finished", "diverged", "failed", "missing"]


@dataclass(frozen=True)
class TrialResult:
    """A trial, and what it reached.

    Attributes:
        trial: The trial.
        status: "diverged" where training left the finite numbers: such a trial is
            worse than any other, and is not repeated.
        accuracy: The accuracy on validation images that is chosen by, in [0, 1]; None
            where the trial is not finished.
        reason: The reason why it diverged or failed; empty otherwise.
    """

    trial: PlannedRun
    status: TrialStatus
    accuracy: float | None
    reason: str


@dataclass(frozen=True)
class TunedVariant:
    """The trials of a method with one value of each of its axes.

    Attributes:
        results: The trials with what they reached, in order; at least one.
    """

    results: Sequence[TrialResult]

    @property
    def name(self) -> str:
        """The method and the values of its axes, fit for a folder."""
        return self.results[0].trial.variant

    @property
    def is_complete(self) -> bool:
        """Whether all trials have an outcome."""
        return all(r.status in ("finished", "diverged") for r in self.results)

    @property
    def chosen(self) -> PlannedRun | None:
        """The trial with the best accuracy on validation images, of equals the first.

        None while a trial is missing, and where all diverged.
        """
        finished = [r for r in self.results if r.accuracy is not None]
        if not (finished and self.is_complete):
            return None
        # max returns the first of equals.
        return max(finished, key=lambda result: result.accuracy or 0.0).trial

    @property
    def failure(self) -> str:
        """The reason why nothing can be chosen; empty while it can be, or could."""
        if not self.is_complete:
            reasons = [f"{r.trial.name}: {r.reason}" for r in self.results if r.reason]
            return f"a trial is missing: {'; '.join(reasons)}"
        if self.chosen is None:
            return f"every trial diverged: {self.results[-1].reason}"
        return ""

    @property
    def on_edge(self) -> dict[str, str]:
        """The chosen values that are the largest or smallest tried, by setting.

        Only numbers count: true is not larger than false.
        """
        if self.chosen is None:
            return {}
        edges: dict[str, str] = {}
        for name, value in self.chosen.tuned.items():
            tried = [result.trial.tuned[name] for result in self.results]
            numbers = [v for v in tried if not isinstance(v, bool | str)]
            if len(numbers) < len(tried) or len(set(numbers)) < 2:
                continue
            for edge, limit in (("largest", max(numbers)), ("smallest", min(numbers))):
                if value == limit:
                    edges[name] = edge
        return edges

    def to_json(self, seconds: Mapping[str, float]) -> dict[str, Any]:
        """Return trials and choice as study.json has them.

        Args:
            seconds: The time that trials took, by name.
        """
        first, chosen = self.results[0].trial, self.chosen
        return {
            "method": first.method,
            "axes": dict(first.axes),
            "num_trials": len(self.results),
            "chosen_trial": chosen.trial if chosen else None,
            "chosen_settings": dict(chosen.tuned) if chosen else {},
            "on_edge": self.on_edge,
            "trials": [
                {
                    "trial": result.trial.trial,
                    "name": result.trial.name,
                    "folder": result.trial.folder,
                    "settings": dict(result.trial.tuned),
                    "status": result.status,
                    "reason": result.reason,
                    "validation_accuracy": result.accuracy,
                    "seconds": seconds.get(result.trial.name, 0.0),
                }
                for result in self.results
            ],
        }


def tuned_variants(
    study: Path,
    trials: Sequence[PlannedRun],
    tuning: TuningConfig,
    failures: Mapping[str, str],
) -> list[TunedVariant]:
    """Read what the trials of a study reached; test images play no part in it.

    Args:
        study: The study's folder.
        trials: All trials of the study, those of a variant one after another.
        tuning: The table that says which figure is chosen by.
        failures: The reasons why trials failed just now, by name.

    Raises:
        OutputError: a trial's folder is damaged.
    """
    by_variant = groupby(trials, key=lambda trial: trial.variant)
    return [
        TunedVariant(
            [_result(study, trial, tuning.figure, failures) for trial in group]
        )
        for _, group in by_variant
    ]


def _result(
    study: Path, trial: PlannedRun, figure: str, failures: Mapping[str, str]
) -> TrialResult:
    folder = RunFolder(study / trial.folder)
    if folder.finished:
        accuracy = folder.summary().get(figure)
        if accuracy is None:
            raise OutputError(
                f"{folder.path / SUMMARY} has no {figure}: remove {folder.path} to "
                f"make the trial anew"
            )
        return TrialResult(trial, "finished", accuracy, "")
    if reason := divergence(folder):
        return TrialResult(trial, "diverged", None, reason)
    if trial.name in failures:
        return TrialResult(trial, "failed", None, failures[trial.name])
    return TrialResult(trial, "missing", None, "")


def divergence(folder: RunFolder) -> str:
    """Return why training diverged; empty if it did not.

    Args:
        folder: The folder of a run that is not finished.
    """
    failure = folder.read_json(FAILURE)
    if failure.get("error") != DivergenceError.__name__:
        return ""
    return str(failure.get("message", "training diverged"))
