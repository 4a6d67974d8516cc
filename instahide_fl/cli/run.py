"""The command `run`."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instahide_fl.cli.common import (
    BROKEN,
    Assignments,
    Settings,
    console,
    errors,
    read_settings,
    refuse_beside_resume,
)
from instahide_fl.cli.data_summary import print_data_summary
from instahide_fl.cli.output_options import give_result
from instahide_fl.cli.privacy_plan import (
    print_plan,
    warn_of_exposed_clients,
    with_planned_noise,
)
from instahide_fl.config import Config, Scalar
from instahide_fl.errors import ConfigError, DivergenceError
from instahide_fl.interrupts import interrupt
from instahide_fl.terminal import counted

ENGINE_NAMES = ("ray", "flower", "inline")
DEPLOYMENT = "deployment"  # stands in provenance.json where others have an engine

# PyTorch is imported where it is used: pools are built without it.
if TYPE_CHECKING:
    from instahide_fl.run_folder import RunFolder


def run(
    config: Settings = None,
    assignments: Assignments = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(ENGINE_NAMES),
            autocompletion=lambda: ENGINE_NAMES,
            help="Default: ray; with --resume, the run's own.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the simulation.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder, new or empty.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Continue the run in DIR.")
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Say what would be run and what it would spend."),
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Log to TensorBoard (--logdir runs)."),
    ] = False,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="STORE", help="Log to MLflow: mlflow.db or http://HOST:PORT."
        ),
    ] = None,
) -> None:
    """Simulate a federation and write its run folder."""
    from instahide_fl.engine.run import DEFAULT_ENGINE, ENGINES, check_run
    from instahide_fl.run_folder import RunFolder, free_run_folder
    from instahide_fl.tracking.tracked import tracking_settings

    _check_engine(engine)
    if resume is not None:
        refuse_beside_resume(config, assignments, seed, out)
        folder = RunFolder.open_interrupted(resume)
        settings = folder.config().with_values(tracking_settings(folder))
        engine = engine or _engine_of(folder)
    else:
        settings = read_settings(config, assignments, seed)
    settings = _tracked(settings, tensorboard, mlflow).with_absolute_paths(Path.cwd())
    with console.status("preparing data and pool"):
        data = check_run(settings)
    print_data_summary(data.dataset)
    if resume is None:
        settings = with_planned_noise(settings, data)
    warn_of_exposed_clients(settings, data)
    if plan:
        give_result(print_plan(settings, data))
        return
    if resume is None:
        path = out or free_run_folder(Path("runs"), settings)
        folder = RunFolder.create(path, settings.resolved())
    engine = engine or DEFAULT_ENGINE
    train(settings, folder, ENGINES[engine], engine, resumed=resume is not None)


def _check_engine(engine: str | None) -> None:
    if engine is not None and engine not in ENGINE_NAMES:
        raise ConfigError(
            f"--engine must be one of {', '.join(ENGINE_NAMES)}, got {engine!r}"
        )


def _tracked(settings: Config, tensorboard: bool, mlflow: str | None) -> Config:
    changes: dict[str, Scalar] = {}
    if tensorboard:
        changes["output.tensorboard"] = True
    if mlflow is not None:
        changes["output.mlflow"] = mlflow
    return settings.with_values(changes)


def _engine_of(folder: RunFolder) -> str | None:
    """Return the engine that a run was last on; None if its folder does not say.

    Raises:
        ConfigError: it was on real clients, which no engine can stand in for.
    """
    from instahide_fl.engine.run import ENGINES
    from instahide_fl.run_folder import PROVENANCE

    provenance = folder.read_json(PROVENANCE)
    starts = [provenance, *provenance.get("resumed", [])]
    engine = starts[-1].get("engine")
    if engine == DEPLOYMENT:
        raise ConfigError(
            f"--resume: the run in {folder.path} is one of a federation's clients: "
            f"continue it with instahide-fl deploy run --resume {folder.path}, or "
            f"simulate the rest with --engine"
        )
    return engine if engine in ENGINES else None


def _note_start(folder: RunFolder, engine: str, *, resumed: bool) -> None:
    """Begin provenance.json with the command, which only the command line knows."""
    from instahide_fl.run_folder import PROVENANCE

    started: dict[str, Any] = {
        "command": shlex.join(["instahide-fl", *sys.argv[1:]]),
        "engine": engine,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if resumed:
        provenance = folder.read_json(PROVENANCE)
        started = {
            **provenance,
            "resumed": [*provenance.get("resumed", []), started],
        }
    folder.write_json(PROVENANCE, started)


def train(
    settings: Config,
    folder: RunFolder,
    start: Callable[[Config, RunFolder], None],
    engine: str,
    *,
    resumed: bool,
    command: str = "instahide-fl run",
) -> None:
    """Run an engine under a progress bar and say how it ended.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        start: The function that starts the engine.
        engine: The name of the engine, for provenance.json.
        resumed: Whether the folder has a checkpoint to continue from.
        command: The command that continues the run, with --resume, if it is
            interrupted.

    Raises:
        OutputError: another process is writing in the folder.
    """
    from instahide_fl.files import sole_writer
    from instahide_fl.progress import RunProgress
    from instahide_fl.run_folder import RunFolder

    absolute = str(folder.path.absolute())
    with_folder = settings.with_values(
        {"output.folder": absolute, "output.resume": resumed}
    )
    # Whoever ends us with SIGTERM (a scheduler, a time limit) gets the same clean-up.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with sole_writer(folder.path):
            if resumed:  # perhaps another process has finished it meanwhile
                _explain_failure(RunFolder.open_interrupted(folder.path))
                folder.clear_failure()
            _note_start(folder, engine, resumed=resumed)
            with RunProgress(folder, settings.train.rounds, console):
                start(with_folder, folder)
    except KeyboardInterrupt as interruption:
        advice = f"interrupted: continue with {command} --resume {folder.path}"
        raise type(interruption)(advice) from None
    _print_outcome(folder.summary(), settings)
    console.print(f"run folder: {folder.path}")
    give_result({"folder": folder.path.absolute(), **folder.summary()})


def _print_outcome(summary: Mapping[str, Any], settings: Config) -> None:
    """Print what a finished run reached, and what that does not say."""
    console.print(
        f"accuracy {summary['final_accuracy']:.1%} on clean test images after "
        f"{counted(summary['rounds'], 'round')} ({summary['seconds']:.0f} s)"
    )
    if "final_accuracy_encoded" in summary:
        console.print(
            f"accuracy {summary['final_accuracy_encoded']:.1%} on the average over "
            f"{settings.train.evaluate_encodings} encodings of each test image"
        )
    if "validation_accuracy" in summary:
        console.print(
            f"accuracy {summary['validation_accuracy']:.1%} on validation images; "
            f"best {summary['best_validation_accuracy']:.1%} after round "
            f"{summary['best_validation_round']}"
        )
    _warn_of_chance(summary, settings)
    if settings.defense.is_private:
        console.print(_privacy(summary))
    if settings.instahide.method != "none":
        console.print(
            f"{BROKEN}: this accuracy says nothing about privacy.", style="yellow"
        )


def _explain_failure(folder: RunFolder) -> None:
    """Say why a run that is resumed ended early, if it noted a reason."""
    from instahide_fl.run_folder import CONFIG

    failure = folder.failure()
    if failure is None:
        return
    remedy = ""
    if isinstance(failure, DivergenceError):
        remedy = f"; it will again, unless {folder.path / CONFIG} is changed"
    errors.print(f"the run ended early: {failure}{remedy}", style="yellow")


def _warn_of_chance(summary: Mapping[str, Any], settings: Config) -> None:
    """Warn of a network that has learned nothing; old summaries do not say."""
    from instahide_fl.evaluation.chance import chance_warning

    if not summary.get("trained", True):
        accuracy, bound = summary["final_accuracy"], summary["chance_bound"]
        errors.print(chance_warning(accuracy, bound, settings), style="yellow")


def _privacy(summary: Mapping[str, Any]) -> str:
    """Say which differential privacy the run has, or why there is no figure."""
    if "epsilon" not in summary:
        return f"epsilon: {summary['epsilon_absent']}"
    return (
        f"differential privacy of one {summary['privacy_unit']}: epsilon "
        f"{summary['epsilon']:.2f} at delta {summary['delta']:g}"
    )
