"""The commands `data info` and `data partition`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from instahide_fl.cli.common import (
    DATASET_HELP,
    Assignments,
    SettingsOption,
    console,
    print_rows,
    read_settings,
    refuse_existing,
)

if TYPE_CHECKING:
    from torch import Tensor

data_app = typer.Typer(help="Data sets and their partitions.", no_args_is_help=True)
MAX_LISTED_CLASSES = 20  # more are summed up


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

    refuse_existing(picture)
    settings = read_settings(None, assignments, None)
    settings = settings.with_values({"data.dataset": dataset})
    loaded = load_dataset(settings.data, settings.seed)
    counts = loaded.train.targets.bincount(minlength=loaded.train.num_classes).tolist()
    rounded = [round(value, 4) for value in loaded.train.statistics.mean]
    spread = [round(value, 4) for value in loaded.train.statistics.std]
    print_rows(
        ("data set", loaded.name),
        ("training images", f"{len(loaded.train):,}"),
        ("test images", f"{len(loaded.test):,}"),
        ("image", "x".join(map(str, loaded.image_shape)) + " (C x H x W), uint8"),
        ("channel mean", rounded),
        ("channel std", spread),
    )
    _print_classes(loaded.class_names, counts)
    if picture is not None:
        from instahide_fl.pictures.contact_sheet import class_rows, save_contact_sheet

        save_contact_sheet(picture, class_rows(loaded), f"{loaded.name}: training")
        console.print(f"picture: {picture}", markup=False)


@data_app.command("partition")
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
    loaded = load_dataset(settings.data, settings.seed)
    parts = cached_partition(loaded, settings.partition, settings.seed)
    targets, names = loaded.train.targets, loaded.class_names
    counts = count_labels(parts, targets, len(names))
    print_rows(
        ("data set", loaded.name),
        ("scheme", settings.partition.scheme),
        ("clients", f"{len(parts):,}"),
        ("images a client", _spread(counts.sum(dim=1))),
        ("classes a client", _spread((counts > 0).sum(dim=1))),
    )
    if picture is not None:
        from instahide_fl.pictures.partition import save_partition_picture

        save_partition_picture(picture, parts, targets, names)
        console.print(f"picture in {picture}")


def _print_classes(names: Sequence[str], counts: Sequence[int]) -> None:
    """Print the training images of each class, or a summary where there are many."""
    if len(names) > MAX_LISTED_CLASSES:
        fewest, most = min(counts), max(counts)
        few, many = names[counts.index(fewest)], names[counts.index(most)]
        print_rows(
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


def _spread(numbers: Tensor) -> str:
    import numpy as np

    low, middle, high = np.quantile(numbers, (0, 0.5, 1))
    return f"{low:,.0f} to {high:,.0f}, median {middle:,.1f}"
