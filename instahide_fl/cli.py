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
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from instahide_fl.config import Config, Scalar, parse_assignment
from instahide_fl.errors import ConfigError, InstaHideError, OutputError

# PyTorch is imported where it is used: pools are built without it.
if TYPE_CHECKING:
    from instahide_fl.run_folder import RunFolder

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

DATASET_HELP = "A name as in data.dataset, for instance mnist-5k or imagefolder:PATH."
LISTED_CLASSES = 20  # more are summed up

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
    from instahide_fl.run_folder import RunFolder, free_run_folder

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


@data_app.command("info")
def data_info(
    dataset: Annotated[str, typer.Argument(help=DATASET_HELP)] = "mnist-5k",
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Contact sheet of some classes, .png."),
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Print a data set's counts, shape, classes and channel statistics."""
    from instahide_fl.data.datasets import load_dataset

    _refuse_existing(picture)
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
    _print_classes(loaded.class_names, counts)
    if picture is not None:
        from instahide_fl.report.contact_sheet import class_rows, save_contact_sheet

        save_contact_sheet(picture, class_rows(loaded), f"{loaded.name}: training")
        console.print(f"picture: {picture}", markup=False)


@data_app.command("partition")
def data_partition(
    dataset: Annotated[
        str, typer.Argument(help="As data.dataset, for instance mnist-5k.")
    ] = "mnist-5k",
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Picture of it, .png.")
    ] = None,
    config: SettingsOption = None,
    assignments: Assignments = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the partition.")] = None,
) -> None:
    """Print who would get how many images of how many classes, before a run."""
    from instahide_fl.data.datasets import load_dataset
    from instahide_fl.data.partition import cached_partition, count_labels

    if picture is not None and picture.exists():
        raise OutputError(f"{picture} exists already: choose another name")
    settings = _settings(config, assignments, seed)
    settings = settings.with_values({"data.dataset": dataset})
    loaded = load_dataset(settings.data, settings.seed)
    parts = cached_partition(loaded, settings.partition, settings.seed)
    targets, names = loaded.train.targets, loaded.class_names
    counts = count_labels(parts, targets, len(names))
    _print_rows(
        ("data set", loaded.name),
        ("scheme", settings.partition.scheme),
        ("clients", f"{len(parts):,}"),
        ("images a client", _spread(counts.sum(dim=1))),
        ("classes a client", _spread((counts > 0).sum(dim=1))),
    )
    if picture is not None:
        from instahide_fl.report.partition_picture import save_partition_picture

        save_partition_picture(picture, parts, targets, names)
        console.print(f"picture in {picture}")


@pool_app.command("build")
def pool_build(
    source: Annotated[Path, typer.Argument(help="Folder with images at any depth.")],
    out: Annotated[Path, typer.Option(metavar="POOL", help="Folder of the pool.")],
    size: Annotated[int, typer.Option(help="Side of its images, pixels.")] = 32,
    crops: Annotated[int, typer.Option(help="Patches cut from each image.")] = 4,
    min_keypoints: Annotated[
        int,
        typer.Option(help="Keep patches with more SIFT key points; 0 keeps all."),
    ] = 40,
    patch_size: Annotated[
        int, typer.Option(help="Side of a patch before shrinking, pixels.")
    ] = 128,
    channels: Annotated[int, typer.Option(help="1 (grey) or 3 (colour).")] = 3,
    seed: Annotated[int, typer.Option(help="Of the patches' positions.")] = 0,
    jobs: Annotated[
        int | None, typer.Option(help="Processes. Without: one per core.")
    ] = None,
) -> None:
    """Cut a pool from a folder of images; the same command continues."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from instahide_fl.data.pool_build import build_pool
        from instahide_fl.data.pool_patches import PoolBuildOptions
        from instahide_fl.progress import BuildProgress

        cut = (size, crops, min_keypoints, patch_size, channels, seed)
        jobs = len(os.sched_getaffinity(0)) if jobs is None else jobs
        with BuildProgress(console) as progress:
            built = build_pool(source, out, PoolBuildOptions(*cut), jobs, progress)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        errors.print("interrupted: the same command continues")
        raise typer.Exit(1) from None
    _print_rows(*built.facts(), ("pool", built.folder), ("sha256", built.sha256))


@pool_app.command("info")
def pool_info(
    pool: Annotated[Path, typer.Argument(help="Folder of a pool, or photos.")],
    image_size: Annotated[int, typer.Option(help="For photos: side in pixels.")] = 32,
    channels: Annotated[int, typer.Option(help="For photos: 1 or 3.")] = 3,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Picture of a sample, .png.")
    ] = None,
) -> None:
    """Print what a pool holds."""
    from instahide_fl.data.pool_build import build_facts
    from instahide_fl.data.pool_manifest import read_manifest

    if picture is not None and picture.exists():
        raise OutputError(f"{picture} exists already: choose another name")
    opened = _open_pool(pool, image_size, channels)
    _print_rows(
        ("pool", opened.folder),
        ("source", opened.source),
        *build_facts(read_manifest(opened.folder)),
        ("images", f"{len(opened):,}"),
        ("image", "x".join(map(str, opened.image_shape)) + " (C x H x W), uint8"),
        ("size", f"{opened.images.numel() / 1e6:.1f} MB"),
        ("sha256", opened.sha256),
    )
    if picture is not None:
        from instahide_fl.report.contact_sheet import save_contact_sheet

        rows = [("", row) for row in opened.sample().split(10)]
        save_contact_sheet(picture, rows, f"{len(opened):,} images: a sample")


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
    dataset: Annotated[str, typer.Argument(help=DATASET_HELP)],
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
    import torch

    from instahide_fl.encoding.files import encode_dataset, save_encodings, save_key
    from instahide_fl.report.encoding_picture import save_encoding_picture

    _refuse_existing(out, key, picture)
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
    from instahide_fl.run_folder import PROVENANCE

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
    from instahide_fl.run_folder import SUMMARY

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


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _open_pool(pool: Path, image_size: int, channels: int) -> Any:
    from instahide_fl.data.pool import MixingPool

    if str(pool) == "photos":
        with console.status("cutting photographs"):
            return MixingPool.photos(image_size, channels)
    return MixingPool.open(pool)


def _spread(numbers: torch.Tensor) -> str:
    low, middle, high = np.quantile(numbers, (0, 0.5, 1))
    return f"{low:,.0f} to {high:,.0f}, median {middle:,.1f}"


def _refuse_existing(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and path.exists():
            raise OutputError(f"{path} exists already: choose another name")


def _print_classes(names: Sequence[str], counts: Sequence[int]) -> None:
    """Print the training images of each class, or a summary where there are many."""
    if len(names) > LISTED_CLASSES:
        fewest, most = min(counts), max(counts)
        few, many = names[counts.index(fewest)], names[counts.index(most)]
        _print_rows(
            ("classes", f"{len(names):,}: {', '.join(names[:3])}, ..., {names[-1]}"),
            (
                "images a class",
                f"{fewest:,} ({few}) to {most:,} ({many}), mean "
                f"{sum(counts) / len(counts):,.1f}",
            ),
        )
        return
    table = Table("class", "name", "training images")
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        table.add_row(str(number), escape(name), f"{count:,}")
    console.print(table)


def _print_rows(*rows: tuple[str, object]) -> None:
    for name, value in rows:
        console.print(f"{name:<16} {value}", markup=False)
