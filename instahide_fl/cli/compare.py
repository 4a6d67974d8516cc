"""The command `compare`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live

from instahide_fl.cli.common import console, errors
from instahide_fl.cli.data_summary import print_data_summary
from instahide_fl.config import DataConfig
from instahide_fl.errors import ConfigError, DataError, OutputError, StudyError
from instahide_fl.files import sole_writer
from instahide_fl.interrupts import interrupt
from instahide_fl.study.folder import StudyFolder
from instahide_fl.study.plan import PlannedRun, plan_runs
from instahide_fl.study.settings import StudyConfig, fit_for_folder

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
    runs = plan_runs(study, Path.cwd())
    if plan:
        _print_plan(runs)
        return
    folder = StudyFolder(out or Path("studies") / fit_for_folder(study_file.stem))
    if folder.state() and not resume and not _all_finished(folder, runs):
        raise OutputError(
            f"{folder.path} holds an unfinished study: add --resume to finish it, or "
            f"choose another --out"
        )
    folder.open_for(study_file, runs)
    with sole_writer(folder.path):
        failures = _finish(folder, study, runs, jobs)
        _write_report(folder)
    if failures:
        failed = f"{len(failures)} of {len(runs)} runs"
        raise StudyError(
            f"{failed if len(failures) < len(runs) else 'every run'} failed; once the "
            f"reason is gone, add --resume"
        )


def _all_finished(folder: StudyFolder, runs: Sequence[PlannedRun]) -> bool:
    return all(folder.finished(run) for run in runs)


def _print_plan(runs: Sequence[PlannedRun]) -> None:
    for run in runs:
        console.print(run.name, markup=False, highlight=False)
    audits = sum(len(run.audits) for run in runs)
    console.print(f"{len(runs)} runs, {audits} audits", highlight=False)


def _finish(
    folder: StudyFolder, study: StudyConfig, runs: Sequence[PlannedRun], jobs: int
) -> dict[str, str]:
    """Carry out what is missing of a study; return why runs failed, by name."""
    from instahide_fl.compare.execution import parallel_runs

    missing = [run for run in runs if not folder.finished(run)]
    if not missing:
        folder.save(study, runs, {}, {})
        console.print(f"all {len(runs)} runs are finished", markup=False)
        return {}
    _check_attacks(study)
    _print_data_sets(missing)
    count = min(len(missing), parallel_runs(runs[0].config, jobs))
    failures = _carry_out(folder, study, runs, missing, count)
    for name, reason in failures.items():
        errors.print(f"{name} failed: {reason}")
    return failures


def _print_data_sets(runs: Sequence[PlannedRun]) -> None:
    """Print each data set of some runs once, in the order of the runs.

    They are decoded here too, so that parallel runs do not all begin with that.
    """
    from instahide_fl.data.datasets import load_dataset

    data_sets: dict[str, tuple[DataConfig, int]] = {}
    for run in runs:
        data = run.config.data.model_copy(update={"augment": "auto"})
        data_sets.setdefault(repr(data), (data, run.config.seed))
    for data, seed in data_sets.values():
        try:
            dataset = load_dataset(data, seed)
        except DataError:
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


def _carry_out(
    folder: StudyFolder,
    study: StudyConfig,
    runs: Sequence[PlannedRun],
    missing: Sequence[PlannedRun],
    count: int,
) -> dict[str, str]:
    """Carry out the missing runs under a live table; return why some failed."""
    from instahide_fl.compare.execution import RunProcesses
    from instahide_fl.compare.progress_table import progress_table

    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    num_ended = 0
    # Whoever ends us with SIGTERM (a scheduler, a time limit) gets the same clean-up.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        folder.save(study, runs, failures, seconds)
        with RunProcesses(folder.path, count) as processes, _live() as live:
            for ended in processes.carry_out(missing):
                if ended is not None:
                    num_ended += 1
                    _print_ended(ended, num_ended, len(missing))
                    if ended.failure:
                        failures[ended.run.name] = ended.failure
                    seconds[ended.run.name] = ended.seconds
                    folder.save(study, runs, failures, seconds)
                running = {run.name for run, _ in processes.running.values()}
                if console.is_terminal:
                    live.update(
                        progress_table(folder, runs, running, failures), refresh=True
                    )
    except KeyboardInterrupt as interruption:
        raise type(interruption)(
            "interrupted: add --resume to the same command to finish what is missing"
        ) from None
    console.print(progress_table(folder, runs, (), failures))
    return failures


def _live() -> Live:
    return Live(console=console, auto_refresh=False, transient=True)


def _print_ended(ended: EndedRun, num_ended: int, missing: int) -> None:
    """Print that a run ended, where no live table shows it."""
    if not console.is_terminal:
        state = f"finished ({ended.seconds:.0f} s)"
        if ended.failure:
            state = f"failed: {ended.failure}"
        line = f"{num_ended}/{missing} {ended.run.name} {state}"
        console.print(line, markup=False, highlight=False)


def _write_report(folder: StudyFolder) -> None:
    """Write the report unless it is newer than the study; its path comes last."""
    if not folder.report_is_current:
        from instahide_fl.report.reports import write_report

        with console.status("writing the report"):
            write_report([folder.path], None)
    console.print(str(folder.report), markup=False, highlight=False)
