"""The commands `data info` and `data partition`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from instahide_fl.cli.common import (
    DATASET_HELP,
    Assignments,
    SettingsOption,
    console,
    errors,
    print_rows,
    read_settings,
    refuse_existing,
)
from instahide_fl.cli.data_summary import print_data_summary
from instahide_fl.cli.output_options import (
    QuietCommand,
    ResultCommand,
    give_result,
)
from instahide_fl.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor

    from instahide_fl.data.datasets import ImageDataset

data_app = typer.Typer(help="Data sets and their partitions.", no_args_is_help=True)
MAX_LISTED_CLASSES = 20  # more are summed up


@data_app.command("info", cls=QuietCommand)
def data_info(
    dataset: Annotated[str, typer.Argument(help=DATASET_HELP)] = "mnist-5k",
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Contact sheet of some classes, .png."),
    ] = None,
    assignments: Assignments = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")
    ] = False,
) -> None:
    """Print what was read of a data set, what was left out, and what to look at."""
    from instahide_fl.data.datasets import load_dataset

    refuse_existing(picture)
    settings = read_settings(None, assignments, None)
    settings = settings.with_values({"data.dataset": dataset})
    loaded = load_dataset(settings.data, settings.seed, settings.record.holdout_share)
    if as_json:
        print(json.dumps(_as_json(loaded), indent=2))
    else:
        _print_report(loaded)
    if picture is not None:
        from instahide_fl.pictures.contact_sheet import class_rows, save_contact_sheet

        save_contact_sheet(picture, class_rows(loaded), f"{loaded.name}: training")
        notes = errors if as_json else console
        notes.print(f"picture: {picture}", markup=False)


@data_app.command("partition", cls=ResultCommand)
def data_partition(
    dataset: Annotated[
        str, typer.Argument(help="As data.dataset, for instance mnist-5k.")
    ] = "mnist-5k",
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Picture of the partition, .png."),
    ] = None,
    config: SettingsOption = None,
    assignments: Assignments = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the partition.")] = None,
) -> None:
    """Print how many images and classes each client would get in a run."""
    from instahide_fl.data.datasets import load_dataset
    from instahide_fl.data.partition import cached_partition, count_labels

    refuse_existing(picture)
    settings = read_settings(config, assignments, seed)
    settings = settings.with_values({"data.dataset": dataset})
    loaded = load_dataset(settings.data, settings.seed, settings.record.holdout_share)
    print_data_summary(loaded)
    parts = cached_partition(loaded, settings.partition, settings.seed)
    targets, names = loaded.train.targets, loaded.class_names
    counts = count_labels(parts, targets, len(names))
    print_rows(
        ("data set", printable(loaded.name)),
        ("scheme", settings.partition.scheme),
        ("clients", f"{len(parts):,}"),
        ("images a client", _spread(counts.sum(dim=1))),
        ("classes a client", _spread((counts > 0).sum(dim=1))),
    )
    if picture is not None:
        from instahide_fl.pictures.partition import save_partition_picture

        save_partition_picture(picture, parts, targets, names)
        console.print(f"picture in {picture}")
    give_result(
        {
            "dataset": loaded.name,
            "scheme": settings.partition.scheme,
            "classes": list(names),
            "clients": {str(client): row for client, row in enumerate(counts.tolist())},
        }
    )


def _as_json(loaded: ImageDataset) -> dict[str, Any]:
    statistics = loaded.train.statistics
    held_out = loaded.held_out.sizes()
    return {
        "name": loaded.name,
        **(loaded.report.to_json() if loaded.report else {}),
        "statistics": {"mean": list(statistics.mean), "std": list(statistics.std)},
        "digest": loaded.digest,
        **({"held_out": held_out} if held_out else {}),
    }


def _print_report(loaded: ImageDataset) -> None:
    """Print a data report for people; its warnings come last."""
    from instahide_fl.data.report_text import (
        data_facts,
        held_out_lines,
        warning_lines,
    )

    statistics = loaded.train.statistics
    print_rows(
        ("data set", printable(loaded.name)),
        *(data_facts(loaded.report) if loaded.report else ()),
        ("channel mean", [round(value, 4) for value in statistics.mean]),
        ("channel std", [round(value, 4) for value in statistics.std]),
    )
    _print_classes(loaded)
    for line in held_out_lines(loaded.held_out.sizes()):
        console.print(line.strip())
    for line in warning_lines(loaded.report) if loaded.report else ():
        console.print(line, style="yellow", markup=False, highlight=False)


def _print_classes(loaded: ImageDataset) -> None:
    """Print the images of each class, or a summary where there are many."""
    from instahide_fl.data.report_text import class_facts

    names, count = loaded.class_names, len(loaded.class_names)
    train = loaded.train.targets.bincount(minlength=count).tolist()
    test = loaded.test.targets.bincount(minlength=count).tolist()
    if count > MAX_LISTED_CLASSES:
        print_rows(*class_facts(names, train))
        return
    table = Table("class", "name", "training images", "test images")
    for number, (name, *counts) in enumerate(zip(names, train, test, strict=True)):
        cells = [f"{images:,}" for images in counts]
        table.add_row(str(number), escape(printable(name)), *cells)
    console.print(table)


def _spread(numbers: Tensor) -> str:
    import numpy as np

    low, middle, high = np.quantile(numbers, (0, 0.5, 1))
    return f"{low:,.0f} to {high:,.0f}, median {middle:,.1f}"
