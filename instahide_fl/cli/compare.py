"""The command `compare`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape

from instahide_fl.cli.common import console, errors
from instahide_fl.cli.data_summary import print_data_summary
from instahide_fl.cli.output_options import give_result
from instahide_fl.cli.privacy_plan import print_study_epsilons
from instahide_fl.compare.progress_table import progress_table
from instahide_fl.config import DataConfig
from instahide_fl.errors import ConfigError, DataError, OutputError, StudyError
from instahide_fl.files import sole_writer
from instahide_fl.interrupts import interrupt
from instahide_fl.study.folder import StudyFolder
from instahide_fl.study.plan import PlannedRun, plan_runs
from instahide_fl.study.plan_trials import plan_trials
from instahide_fl.study.settings import StudyConfig, fit_for_folder
from instahide_fl.study.tuning import values_in_words

if TYPE_CHECKING:
    from instahide_fl.compare.execution import EndedRun


def compare(
    study_file: Annotated[
        Path, typer.Argument(metavar="STUDY.toml", help="Study file.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Study folder. Default: the file's name, in studies/."
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Runs at the same time; 0: as many as CPUs allow.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Carry out only the missing runs.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="List the runs, but start none.")
    ] = False,
) -> None:
    """Train every method under the same budget, attack each, and write the report."""
    study = StudyConfig.from_toml(study_file)
    trials = plan_trials(study, Path.cwd())
    if plan:
        planned = [*trials, *plan_runs(study, Path.cwd())]
        give_result({"runs": [run.name for run in planned], **_print_plan(planned)})
        return
    folder = StudyFolder(out or Path("studies") / fit_for_folder(study_file.stem))
    work = _Work(folder, study, trials)
    work.plan_runs()
    if folder.state() and not resume and work.missing(work.planned):
        raise OutputError(
            f"{folder.path} holds an unfinished study: add --resume to finish it, or "
            f"choose another --out"
        )
    folder.open_for(study_file, [*trials, *work.chosen_runs])
    with sole_writer(folder.path):
        _finish(work, jobs)
        _write_report(folder)
        if _asks_who_was_trained_on(work.study):
            _print_membership(folder)
        console.print(str(folder.report), markup=False, highlight=False)
    give_result({"folder": folder.path, "report": folder.report, **folder.state()})
    if work.failures:
        count = len(work.planned)
        failed = f"{len(work.failures)} of {_counted_runs(work.planned)}"
        raise StudyError(
            f"{failed if len(work.failures) < count else 'every run'} failed; once the "
            f"reason is gone, add --resume"
        )


@dataclass
class _Work:
    """A study that is being carried out.

    Attributes:
        folder: The study's folder.
        study: The study.
        trials: Its trials.
        runs: Its runs; those of methods whose trials are missing have the settings of
            trial 1, and must wait.
        undecided: The reasons why nothing is chosen yet, by variant.
        failures: The reasons why trials and runs failed, by name.
        seconds: The time that trials and runs took, by name.
    """

    folder: StudyFolder
    study: StudyConfig
    trials: Sequence[PlannedRun]
    runs: Sequence[PlannedRun] = ()
    undecided: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def planned(self) -> list[PlannedRun]:
        """All trials and runs."""
        return [*self.trials, *self.runs]

    @property
    def chosen_runs(self) -> list[PlannedRun]:
        """The runs whose settings are chosen, or need not be."""
        return [run for run in self.runs if run.variant not in self.undecided]

    def plan_runs(self) -> None:
        """Plan the runs with the settings that the trials at hand give."""
        tuned = self.folder.tuned(self.study, self.trials, self.failures)
        chosen = {v.name: v.chosen.tuned for v in tuned if v.chosen is not None}
        self.undecided = {v.name: v.failure for v in tuned if v.chosen is None}
        self.runs = plan_runs(self.study, Path.cwd(), chosen)

    def missing(self, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Return those that are not finished."""
        return [run for run in runs if not self.folder.finished(run)]

    def end(self, ended: EndedRun) -> None:
        """Note the outcome of a trial or run. A trial that diverged is no failure."""
        if ended.failure and not self.folder.finished(ended.run):
            self.failures[ended.run.name] = ended.failure
        self.seconds[ended.run.name] = ended.seconds
        self.save()

    def save(self) -> None:
        """Write study.json."""
        self.folder.save(
            self.study, self.runs, self.failures, self.seconds, self.trials
        )


def _print_plan(planned: Sequence[PlannedRun]) -> dict[str, Any]:
    """Print the runs of a study; return for JSON what they will spend."""
    for run in planned:
        values = f" {values_in_words(run.tuned)}" if run.trial else ""
        console.print(f"{run.name}{values}", markup=False, highlight=False)
    spent = print_study_epsilons(planned)
    audits = sum(len(run.audits) for run in planned)
    console.print(f"{_counted_runs(planned)}, {audits} audits", highlight=False)
    return {"differential_privacy": spent}


def _counted_runs(planned: Sequence[PlannedRun]) -> str:
    """Count trials, where there are any, and runs."""
    num_trials = sum(run.trial > 0 for run in planned)
    trials = f"{num_trials} trials and " if num_trials else ""
    return f"{trials}{len(planned) - num_trials} runs"


def _finish(work: _Work, jobs: int) -> None:
    """Carry out what is missing of a study: first trials, then the chosen runs."""
    missing = work.missing(work.planned)
    if not missing:
        work.save()
        console.print(f"all {_counted_runs(work.planned)} are finished", markup=False)
        return
    _check_attacks(work.study)
    _print_data_sets(missing, must_load=work.study.tuning is not None)
    # A target out of reach is found now, not after other methods have trained.
    print_study_epsilons([r for r in missing if r.config.defense.target_epsilon])
    try:
        work.save()
        _carry_out(work, work.trials, jobs)
        work.plan_runs()
        for run in work.runs:
            if run.variant in work.undecided:
                work.failures[run.name] = work.undecided[run.variant]
        work.folder.check_unchanged(work.chosen_runs)
        work.save()
        _carry_out(work, work.chosen_runs, jobs)
    except KeyboardInterrupt as interruption:
        raise type(interruption)(
            "interrupted: add --resume to the same command to finish what is missing"
        ) from None
    console.print(progress_table(work.folder, work.planned, (), work.failures))
    for name, reason in work.failures.items():
        errors.print(f"{name} failed: {reason}")


def _print_data_sets(runs: Sequence[PlannedRun], must_load: bool) -> None:
    """Print each data set of some runs once, in the order of the runs.

    They are decoded here too, so that parallel runs do not all begin with that.

    Args:
        runs: The trials and runs.
        must_load: Whether a data set that cannot be read, or not divided as the
            settings say, ends the study. Otherwise its runs fail, and others go on.

    Raises:
        DataError: such a data set must load.
    """
    from instahide_fl.data.datasets import load_dataset

    configs = [run.config for run in runs]
    if must_load:
        configs += [config for run in runs for _, config in run.audits]
    data_sets: dict[str, tuple[DataConfig, int, float]] = {}
    for config in configs:
        data = config.data.model_copy(update={"augment": "auto"})
        share = config.record.holdout_share
        data_sets.setdefault(f"{data!r} {share}", (data, config.seed, share))
    for data, seed, share in data_sets.values():
        try:
            dataset = load_dataset(data, seed, share)
        except DataError:
            if must_load:
                raise
            continue  # its runs fail with that reason, and others go on
        print_data_summary(dataset)


def _check_attacks(study: StudyConfig) -> None:
    """Find mistakes in the audits before anything runs.

    Raises:
        ConfigError: an attack, one of its settings, or a threat model is not valid.
    """
    from instahide_fl.attacks.registry import build_attack
    from instahide_fl.transcript.threat_model import threat_model

    for audit in study.audits:
        for name in audit.attack_settings.keys() - set(audit.attacks):
            raise ConfigError(
                f"audit {audit.name!r}: attack-settings are for {name!r}, which is not "
                f"among its attacks"
            )
        try:
            for name in audit.attacks:
                build_attack(name, audit.attack_settings.get(name, {}))
            if audit.threat_model:
                threat_model(audit.threat_model)
        except ConfigError as error:
            raise ConfigError(f"audit {audit.name!r}: {error}") from None


def _carry_out(work: _Work, runs: Sequence[PlannedRun], jobs: int) -> None:
    """Carry out the missing ones of some trials or runs under a live table."""
    from instahide_fl.compare.execution import RunProcesses, parallel_runs

    missing = work.missing(runs)
    if not missing:
        return
    count = min(len(missing), parallel_runs(missing[0].config, jobs))
    num_ended = 0
    # Whoever ends us with SIGTERM (a scheduler, a time limit) gets the same clean-up.
    signal.signal(signal.SIGTERM, interrupt)
    with RunProcesses(work.folder.path, count) as processes, _live() as live:
        for ended in processes.carry_out(missing):
            if ended is not None:
                num_ended += 1
                work.end(ended)
                _print_ended(work, ended, f"{num_ended}/{len(missing)}")
            running = {run.name for run, _ in processes.running.values()}
            if console.is_terminal:
                live.update(
                    progress_table(work.folder, runs, running, work.failures),
                    refresh=True,
                )


def _live() -> Live:
    return Live(console=console, auto_refresh=False, transient=True)


def _print_ended(work: _Work, ended: EndedRun, position: str) -> None:
    """Print that a run ended, where no live table shows it."""
    if console.is_terminal:
        return
    state = f"finished ({ended.seconds:.0f} s)"
    if ended.failure:
        verb = "failed" if ended.run.name in work.failures else "diverged"
        state = f"{verb}: {ended.failure}"
    console.print(f"{position} {ended.run.name} {state}", markup=False, highlight=False)


def _write_report(folder: StudyFolder) -> None:
    """Write the report unless it is newer than the study."""
    if not folder.report_is_current:
        from instahide_fl.report.reports import write_report

        with console.status("writing the report"):
            write_report([folder.path], None)


def _asks_who_was_trained_on(study: StudyConfig) -> bool:
    attacks = (name for audit in study.audits for name in audit.attacks)
    return any(name.startswith("membership_") for name in attacks)


def _print_membership(folder: StudyFolder) -> None:
    """Print the report's table of attacks on membership."""
    from rich.table import Table

    from instahide_fl.report.membership import membership_table, terminal_columns
    from instahide_fl.report.results import load_study
    from instahide_fl.report.variants import study_variants

    membership = membership_table(study_variants(load_study(folder.path)))
    if membership is None:
        return
    shown = terminal_columns(membership)
    table = Table(*shown, title=membership.title)
    for row in membership.rows:
        cells = dict(zip(membership.columns, row, strict=True))
        table.add_row(*(escape(cells[name]) for name in shown))
    console.print(table)
