"""The command `instahide-fl`.

Exit code 0 only on success, 2 for a user's mistake (one line says what to do), 1 for a
run that failed.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from instahide_fl.config import Config, Scalar, parse_assignment
from instahide_fl.errors import ConfigError, InstaHideError, OutputError
from instahide_fl.run_folder import (
    EVALUATION,
    EVALUATION_PICTURE,
    PROVENANCE,
    SUMMARY,
    RunFolder,
    free_run_folder,
)

BROKEN = "InstaHide is broken as an encryption scheme (Carlini et al., IEEE S&P 2021)"

app = typer.Typer(
    help="Federated learning with InstaHide, and the measurement of what it hides.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Data sets.", no_args_is_help=True)
pool_app = typer.Typer(help="Pools of public images.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(pool_app, name="pool")

console = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

Settings = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG.toml]", help="Settings file.")
]
SettingsOption = Annotated[
    Path | None, typer.Option("--config", metavar="CONFIG.toml", help="Settings file.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.rounds=50."
    ),
]


def main() -> None:
    """Run the command line; turn this package's errors into one line and a code."""
    try:
        app()
    except InstaHideError as error:
        errors.print(f"error: {error}")
        sys.exit(error.exit_code)


@app.command()
def run(
    config: Settings = None,
    assignments: Assignments = None,
    engine: Annotated[
        str | None,
        typer.Option(help="ray (default), flower or inline."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the simulation.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder, new or empty.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Continue the run in DIR.")
    ] = None,
) -> None:
    """Simulate a federation and write its run folder."""
    from instahide_fl.engine.run import DEFAULT_ENGINE, ENGINES, check_run

    start = _choose(engine or DEFAULT_ENGINE, ENGINES)
    if resume is not None:
        if config or assignments or seed is not None or out:
            raise ConfigError(
                "--resume continues with the settings of its folder: give no settings "
                "file, --set, --seed or --out beside it"
            )
        settings = RunFolder.open_interrupted(resume).config()
    else:
        settings = _settings(config, assignments, seed)
    with console.status("preparing data and pool"):
        check_run(settings)
    if resume is not None:
        folder = RunFolder.open_interrupted(resume)
        folder.clear_failure()
    else:
        path = out or free_run_folder(Path("runs"), settings)
        folder = RunFolder.create(path, settings.resolved())
    _note_start(folder, engine or DEFAULT_ENGINE, resumed=resume is not None)
    _train(settings, folder, start, resume is not None)


@app.command()
def evaluate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    encodings: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Also classify K encodings an image."),
    ] = None,
    own_coefficient: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="X",
            help="Least coefficient of the image itself; default: the run's bound.",
        ),
    ] = None,
    average: Annotated[
        str, typer.Option(help="What is averaged: softmax or logits.")
    ] = "softmax",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the keys; default: the run's.")
    ] = None,
) -> None:
    """Evaluate a finished run again, on clean or on encoded test images."""
    from instahide_fl.report.evaluation import (
        EncodedSettings,
        encoder_of,
        evaluate_clean,
        evaluate_encoded,
        save_evaluation,
    )
    from instahide_fl.training.finished import open_finished_run

    given = own_coefficient is not None or average != "softmax" or seed is not None
    if encodings is None and given:
        raise ConfigError(
            "--own-coefficient, --average and --seed are about encodings: give "
            "--encodings K too"
        )
    with console.status("opening the run"):
        run = open_finished_run(run_folder)
        # Before anything is computed: it finds the mistakes.
        encoder = encoder_of(run, own_coefficient) if encodings else None
        clean = evaluate_clean(run)
    console.print(f"accuracy {clean.accuracy:.1%}, loss {clean.loss:.4f}: clean images")
    _compare_with_summary(run.summary, clean.accuracy)
    if encodings is None or encoder is None:
        return
    chosen = run.config.seed if seed is None else seed
    settings = EncodedSettings(encodings, average, chosen)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar:
        total = encodings * len(run.dataset.test)
        task = bar.add_task("classifying encodings", total=total)
        encoded = evaluate_encoded(
            run, encoder, settings, lambda done: bar.advance(task, done)
        )
    save_evaluation(run, clean, encoder, settings, encoded)
    _print_by_encodings(encoded.accuracy_by_encodings)
    console.print(
        f"accuracy {encoded.accuracy:.1%}, loss {encoded.loss:.4f}: average of "
        f"{encodings} encodings of each image"
    )
    console.print(f"written to {run_folder}: {EVALUATION}, {EVALUATION_PICTURE}")


@data_app.command("info")
def data_info(
    dataset: Annotated[
        str, typer.Argument(help="mnist-5k or hf:PATH-OR-NAME.")
    ] = "mnist-5k",
    assignments: Assignments = None,
) -> None:
    """Print a data set's counts, shape, classes and channel statistics."""
    from instahide_fl.data.datasets import load_dataset

    settings = _settings(None, assignments, None)
    settings = settings.with_values({"data.dataset": dataset})
    loaded = load_dataset(settings.data, settings.seed)
    counts = loaded.train.targets.bincount(minlength=loaded.train.num_classes).tolist()
    rounded = [round(value, 4) for value in loaded.train.statistics.mean]
    spread = [round(value, 4) for value in loaded.train.statistics.std]
    _print_rows(
        ("data set", loaded.name),
        ("training images", f"{len(loaded.train):,}"),
        ("test images", f"{len(loaded.test):,}"),
        ("image", "x".join(map(str, loaded.image_shape)) + " (C x H x W), uint8"),
        ("channel mean", rounded),
        ("channel std", spread),
    )
    table = Table("class", "name", "training images")
    for number, (name, count) in enumerate(
        zip(loaded.class_names, counts, strict=True)
    ):
        table.add_row(str(number), name, f"{count:,}")
    console.print(table)


@pool_app.command("info")
def pool_info(
    pool: Annotated[Path, typer.Argument(help="Folder of a pool, or photos.")],
    image_size: Annotated[int, typer.Option(help="For photos: side in pixels.")] = 32,
    channels: Annotated[int, typer.Option(help="For photos: 1 or 3.")] = 3,
) -> None:
    """Print what a pool holds."""
    opened = _open_pool(pool, image_size, channels)
    _print_rows(
        ("pool", opened.folder),
        ("source", opened.source),
        ("images", f"{len(opened):,}"),
        ("image", "x".join(map(str, opened.image_shape)) + " (C x H x W), uint8"),
        ("size", f"{opened.images.numel() / 1e6:.1f} MB"),
        ("sha256", opened.sha256),
    )


@pool_app.command("verify")
def pool_verify(
    pool: Annotated[Path, typer.Argument(help="Folder of a pool, or photos.")],
    image_size: Annotated[int, typer.Option(help="For photos: side in pixels.")] = 32,
    channels: Annotated[int, typer.Option(help="For photos: 1 or 3.")] = 3,
) -> None:
    """Read every pixel of a pool and compare with its digest."""
    opened = _open_pool(pool, image_size, channels)
    with console.status("reading"):
        opened.verify()
    console.print(f"{len(opened):,} images match sha256 {opened.sha256}")


@app.command()
def encode(
    dataset: Annotated[str, typer.Argument(help="mnist-5k or hf:PATH-OR-NAME.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Encodings, .npz.")],
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys, .npz. Whoever has them can decode."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Picture of ten, .png.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Encode only the first N.")
    ] = None,
    config: SettingsOption = None,
    assignments: Assignments = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Repeatable, insecure keys. Without: operating system."),
    ] = None,
) -> None:
    """Encode the training images of a data set, without a federation."""
    from instahide_fl.encoding.files import encode_dataset, save_encodings, save_key
    from instahide_fl.report.encoding_picture import save_encoding_picture

    for path in (out, key, picture):
        if path is not None and path.exists():
            raise OutputError(f"{path} exists already: choose another name")
    settings = _settings(config, assignments, seed)
    settings = settings.with_values({"data.dataset": dataset})
    encoded = encode_dataset(settings, limit=images, seeded=seed is not None)
    if key is not None:
        save_key(key, encoded.key)
    if picture is not None:
        few = encoded.key.rows(torch.arange(min(10, len(encoded.key))))
        save_encoding_picture(picture, encoded.encoder, few, encoded.split)
    save_encodings(out, encoded.batch)
    console.print(f"{len(encoded.batch):,} encodings in {out}")
    if settings.instahide.method == "instahide":
        console.print(f"{BROKEN}: treat the file as the images.", style="yellow")


def _settings(
    path: Path | None, assignments: Sequence[str] | None, seed: int | None
) -> Config:
    """Merge the settings file, `--set` and `--seed`, in this order."""
    changes: dict[str, Scalar] = dict(map(parse_assignment, assignments or []))
    if seed is not None:
        changes["seed"] = seed
    return Config.from_toml(path, changes) if path else Config().with_values(changes)


def _choose(name: str, choices: dict[str, Any]) -> Any:
    if name not in choices:
        raise ConfigError(f"--engine must be one of {', '.join(choices)}, got {name!r}")
    return choices[name]


def _note_start(folder: RunFolder, engine: str, *, resumed: bool) -> None:
    """Begin provenance.json with what only the command line knows."""
    started: dict[str, Any] = {
        "command": shlex.join(["instahide-fl", *sys.argv[1:]]),
        "engine": engine,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    known = folder.read_json(PROVENANCE)
    if resumed:
        started = {**known, "resumed": [*known.get("resumed", []), started]}
    folder.write_json(PROVENANCE, started)


def _train(
    settings: Config,
    folder: RunFolder,
    start: Callable[[Config, RunFolder], None],
    resumed: bool,
) -> None:
    """Run an engine under a progress bar and say how it ended."""
    from instahide_fl.progress import RunProgress

    absolute = str(folder.path.absolute())
    full = settings.with_values({"output.folder": absolute, "output.resume": resumed})
    # Whoever ends us with SIGTERM (a scheduler, a time limit) gets the same clean-up.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with RunProgress(folder, settings.train.rounds, console):
            start(full, folder)
    except KeyboardInterrupt:
        remedy = (
            f"continue with instahide-fl run --resume {folder.path}"
            if folder.resumable
            else "there was no checkpoint yet: start it anew"
        )
        errors.print(f"interrupted: {remedy}")
        # A second Ctrl-C must not stop the exit half way.
        os._exit(1)
    summary = folder.read_json(SUMMARY)
    console.print(
        f"accuracy {summary['final_accuracy']:.1%} on clean test images after "
        f"{summary['rounds']} rounds ({summary['seconds']:.0f} s)"
    )
    if settings.instahide.method != "none":
        console.print(
            f"{BROKEN}: this accuracy says nothing about privacy.", style="yellow"
        )
    console.print(f"run folder: {folder.path}")


def _compare_with_summary(summary: dict[str, Any], accuracy: float) -> None:
    """Say so if the model is not as good as the run said."""
    noted = summary.get("final_accuracy")
    if noted != accuracy:
        errors.print(
            f"warning: {SUMMARY} says accuracy {noted}, now it is {accuracy}: a few "
            f"images may differ by rounding on another machine or another version of "
            f"PyTorch; if it is more, files of the run were changed"
        )


def _print_by_encodings(accuracies: Sequence[float]) -> None:
    """Print some rows of the curve: 1, 2, 3, 5, 10, 20, 50, ..., and the last."""
    shown = {3, len(accuracies)}
    shown |= {step * 10**power for step in (1, 2, 5) for power in range(6)}
    table = Table("encodings", "accuracy")
    for count in sorted(shown & set(range(1, len(accuracies) + 1))):
        table.add_row(str(count), f"{accuracies[count - 1]:.1%}")
    console.print(table)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _open_pool(pool: Path, image_size: int, channels: int) -> Any:
    from instahide_fl.data.pool import MixingPool

    if str(pool) == "photos":
        with console.status("cutting photographs"):
            return MixingPool.photos(image_size, channels)
    return MixingPool.open(pool)


def _print_rows(*rows: tuple[str, object]) -> None:
    for name, value in rows:
        console.print(f"{name:<16} {value}", markup=False)
