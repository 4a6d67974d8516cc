"""A study's folder: what it holds, and what of it is finished.

study.toml          a copy of the study file
study.json          the runs with their states; rewritten after each run
tuning/NAME/        the folders of a method's trials, where the study tunes methods
runs/NAME/          the folder of each run
runs/NAME/audits/   a run folder for each audit, with attacks/ in it
report.html         the report (`instahide-fl report`)
report/             the figures and tables of the report as files
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from instahide_fl.config import Config
from instahide_fl.errors import ConfigError, OutputError
from instahide_fl.files import write_text
from instahide_fl.run_folder import CONFIG, RunFolder
from instahide_fl.study.plan import PlannedRun
from instahide_fl.study.settings import AuditConfig, StudyConfig
from instahide_fl.study.trial_results import TunedVariant, divergence, tuned_variants
from instahide_fl.study.tuning import values_in_words

STUDY = "study.toml"
STATE = "study.json"
AUDITS = "audits"
REPORT = "report.html"
AUDIT_FILE = "audit.json"  # written last: an audit without it is not finished

Status: TypeAlias = Literal["finished", "failed", "missing"]


@dataclass(frozen=True)
class StudyFolder:
    """Reads and writes a study's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def report(self) -> Path:
        """The path of the report, whether it exists or not."""
        return self.path / REPORT

    @property
    def report_is_current(self) -> bool:
        """Whether the report was written after study.json."""
        state = self.path / STATE
        return (
            self.report.is_file()
            and self.report.stat().st_mtime_ns > state.stat().st_mtime_ns
        )

    def open_for(self, source: Path, runs: Sequence[PlannedRun]) -> None:
        """Make the folder, or check that what is in it belongs to this study.

        Args:
            source: The study file.
            runs: The runs of the study, and its trials.

        Raises:
            OutputError: the folder holds something else, or runs under the same names
                that were made with other settings.
        """
        if self.path.exists() and (
            not self.path.is_dir()
            or (any(self.path.iterdir()) and not (self.path / STUDY).is_file())
        ):
            raise OutputError(
                f"{self.path} exists already and holds no study: choose another --out"
            )
        self.check_unchanged(runs)
        try:
            text = source.read_text(encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot read {source}: {error.strerror}") from None
        if not self._holds(text):
            write_text(self.path / STUDY, text)

    def check_unchanged(self, runs: Sequence[PlannedRun]) -> None:
        """Check that what was made of some runs has their settings.

        Args:
            runs: Runs and trials of the study.

        Raises:
            OutputError: the folder of a run was made with other settings.
        """
        for run in runs:
            self._check_unchanged(run)

    def run(self, run: PlannedRun) -> RunFolder:
        """Return the folder of a run, whether it exists or not."""
        return RunFolder(self.path / run.folder)

    def audit(self, run: PlannedRun, audit: AuditConfig) -> RunFolder:
        """Return the folder of an audit's short run, whether it exists or not."""
        return RunFolder(self.run(run).path / AUDITS / audit.folder)

    def finished(self, run: PlannedRun) -> bool:
        """Tell whether a run was trained and all its audits were made.

        A trial that diverged has its outcome too.
        """
        if run.trial and divergence(self.run(run)):
            return True
        return self.run(run).finished and not self.missing_audits(run)

    def tuned(
        self,
        study: StudyConfig,
        trials: Sequence[PlannedRun],
        failures: Mapping[str, str],
    ) -> list[TunedVariant]:
        """Return what the trials of each variant reached, and what is chosen.

        Args:
            study: The study; without the table `[tuning]` there are none.
            trials: All trials of the study.
            failures: The reasons why trials failed just now, by name.

        Raises:
            OutputError: a trial's folder is damaged.
        """
        if study.tuning is None:
            return []
        return tuned_variants(self.path, trials, study.tuning, failures)

    def missing_audits(self, run: PlannedRun) -> list[tuple[AuditConfig, Config]]:
        """Return the audits of a run that are still to be made, with their settings."""
        return [
            (audit, config)
            for audit, config in run.audits
            if not audit_is_finished(self.audit(run, audit), audit)
        ]

    def save(
        self,
        study: StudyConfig,
        runs: Sequence[PlannedRun],
        failures: Mapping[str, str],
        seconds: Mapping[str, float],
        trials: Sequence[PlannedRun] = (),
    ) -> None:
        """Write study.json.

        Args:
            study: The study.
            runs: All runs of the study.
            failures: The reasons why runs and trials failed, by name.
            seconds: The time that runs and trials took just now, by name; others keep
                the time that study.json has.
            trials: All trials of the study.

        Raises:
            OutputError: the file cannot be written.
        """
        seconds = {**_seconds(self.state()), **seconds}
        state: dict[str, Any] = {
            "title": study.title,
            "question": study.question,
            "methods": [method.name for method in study.methods],
            "axes": study.axes,
            "seeds": study.seeds,
            "audits": [
                {"name": audit.name, "start": audit.start, "attacks": audit.attacks}
                for audit in study.audits
            ],
            "runs": [
                {
                    "name": run.name,
                    "method": run.method,
                    "axes": dict(run.axes),
                    "seed": run.seed,
                    "folder": run.folder,
                    "status": self._status(run, failures),
                    "reason": failures.get(run.name, ""),
                    "seconds": seconds.get(run.name, 0.0),
                }
                for run in runs
            ],
        }
        if study.reference:
            state["reference"] = study.reference
        if study.tuning is not None:
            state["tuning"] = {
                **study.tuning.model_dump(exclude={"trials"}),
                "variants": [
                    variant.to_json(seconds)
                    for variant in self.tuned(study, trials, failures)
                ],
            }
        text = json.dumps(state, indent=2) + "\n"
        if not (self.path / STATE).is_file() or text != _text(self.path / STATE):
            write_text(self.path / STATE, text)

    def state(self) -> dict[str, Any]:
        """Read study.json; return nothing where there is none.

        Raises:
            OutputError: the file is damaged.
        """
        return RunFolder(self.path).read_json(STATE)

    def _status(self, run: PlannedRun, failures: Mapping[str, str]) -> Status:
        if run.name in failures:
            return "failed"
        return "finished" if self.finished(run) else "missing"

    def _holds(self, text: str) -> bool:
        return (self.path / STUDY).is_file() and _text(self.path / STUDY) == text

    def _check_unchanged(self, run: PlannedRun) -> None:
        folder = self.run(run)
        if not (folder.path / CONFIG).is_file():
            return
        try:
            stored = _settings_of_result(folder.config())
            planned = _settings_of_result(run.config)
        except ConfigError as error:
            raise OutputError(f"the run in {folder.path} is damaged: {error}") from None
        changed = [name for name in planned if stored.get(name) != planned[name]]
        if changed:
            name = changed[0]
            raise OutputError(
                f"{folder.path} was made with {values_in_words({name: stored[name]})}, "
                f"the study says {values_in_words({name: planned[name]})} now: put it "
                f"back, choose another --out, or remove that folder to make the run "
                f"anew"
            )


def audit_is_finished(folder: RunFolder, audit: AuditConfig) -> bool:
    """Tell whether all attacks of an audit were tried.

    Args:
        folder: The folder of the audit's short run.
        audit: The audit.
    """
    return set(audit.attacks) <= set(folder.read_json(AUDIT_FILE).get("attacks", []))


def _seconds(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the time that runs and trials took, by name."""
    tuned = state.get("tuning", {}).get("variants", [])
    entries = [*state.get("runs", []), *(t for v in tuned for t in v["trials"])]
    return {entry["name"]: entry["seconds"] for entry in entries}


def _settings_of_result(config: Config) -> dict[str, object]:
    """Return the settings that a result depends on, without resources and output.

    With `defense.target-epsilon` the noise follows from the others.
    """
    left_out = ["output.", "resources."]
    if config.defense.target_epsilon:
        left_out.append("defense.noise-multiplier")
    return {
        name: value
        for name, value in config.to_run_config().items()
        if not name.startswith(tuple(left_out))
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
