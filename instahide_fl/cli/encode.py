"""The command `encode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instahide_fl.cli.common import (
    BROKEN,
    DATASET_HELP,
    Assignments,
    SettingsOption,
    console,
    read_settings,
    refuse_existing,
)
from instahide_fl.cli.data_summary import print_data_summary
from instahide_fl.cli.output_options import give_result


def encode(
    dataset: Annotated[str, typer.Argument(help=DATASET_HELP)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Encodings, .npz.")],
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keys, .npz. Whoever has them can decode."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Picture of ten encodings, .png."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Encode only the first N images.")
    ] = None,
    config: SettingsOption = None,
    assignments: Assignments = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Draw repeatable, insecure keys. Default: secure keys."),
    ] = None,
) -> None:
    """Encode the training images of a data set, without a federation."""
    import torch

    from instahide_fl.data.datasets import load_dataset
    from instahide_fl.encoding.files import encode_dataset, save_encodings, save_key
    from instahide_fl.pictures.encodings import save_encoding_picture

    refuse_existing(out, key, picture)
    settings = read_settings(config, assignments, seed)
    settings = settings.with_values({"data.dataset": dataset})
    loaded = load_dataset(settings.data, settings.seed, settings.record.holdout_share)
    print_data_summary(loaded)
    encoded = encode_dataset(
        settings, limit=images, seeded=seed is not None, dataset=loaded
    )
    if key is not None:
        save_key(key, encoded.key)
    if picture is not None:
        first_ten = encoded.key.select(torch.arange(min(10, len(encoded.key))))
        save_encoding_picture(picture, encoded.encoder, first_ten, encoded.split)
    save_encodings(out, encoded.batch)
    console.print(f"{len(encoded.batch):,} encodings in {out}", markup=False)
    files = {"encodings": out, "key": key, "picture": picture}
    given = {name: path for name, path in files.items() if path is not None}
    give_result({"count": len(encoded.batch), **given})
    if settings.instahide.method == "instahide":
        console.print(f"{BROKEN}: treat the file as the images.", style="yellow")
