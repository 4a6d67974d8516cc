"""The commands `pool build`, `pool info` and `pool verify`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instahide_fl.cli.common import (
    console,
    print_rows,
    refuse_existing,
)
from instahide_fl.cli.output_options import ResultCommand, give_result
from instahide_fl.interrupts import interrupt

# PyTorch is imported where it is used: pools are built without it.
if TYPE_CHECKING:
    from instahide_fl.data.pool import MixingPool

pool_app = typer.Typer(help="Pools of public images.", no_args_is_help=True)


@pool_app.command("build", cls=ResultCommand)
def pool_build(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with images at any depth, an archive of one, a folder of "
            "archives, or a pattern such as train-{0000..0009}.tar."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="POOL", help="Folder of the pool.")],
    size: Annotated[int, typer.Option(help="Side of its images, in pixels.")] = 32,
    crops: Annotated[int, typer.Option(help="Patches cut from each image.")] = 4,
    min_keypoints: Annotated[
        int,
        typer.Option(help="Keep patches with more SIFT key points than this; 0: all."),
    ] = 40,
    patch_size: Annotated[
        int, typer.Option(help="Side of a patch before shrinking, in pixels.")
    ] = 128,
    channels: Annotated[int, typer.Option(help="1 (grey) or 3 (colour).")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the patches' positions.")] = 0,
    value_range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Values that become 0 and 255, in pictures deeper than 8 bits.",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Number of processes. Default: one per core.")
    ] = None,
) -> None:
    """Cut a pool from images; repeat the command if it was interrupted."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        from instahide_fl.data.pool_build import build_pool
        from instahide_fl.data.pool_patches import PoolBuildOptions
        from instahide_fl.progress import BuildProgress

        options = PoolBuildOptions(
            size=size,
            crops=crops,
            min_keypoints=min_keypoints,
            patch_size=patch_size,
            channels=channels,
            seed=seed,
            value_range=value_range,
        )
        jobs = len(os.sched_getaffinity(0)) if jobs is None else jobs
        with BuildProgress(console) as progress:
            built = build_pool(source, out, options, jobs, progress)
    except KeyboardInterrupt as interruption:
        advice = "interrupted: the same command continues"
        raise type(interruption)(advice) from None
    print_rows(*built.facts(), ("pool", built.folder), ("sha256", built.sha256))
    facts = dict(built.facts())
    give_result({"pool": built.folder, "sha256": built.sha256, "facts": facts})


@pool_app.command("info", cls=ResultCommand)
def pool_info(
    pool: Annotated[Path, typer.Argument(help="Folder of a pool, or photos.")],
    image_size: Annotated[int, typer.Option(help="For photos: side in pixels.")] = 32,
    channels: Annotated[int, typer.Option(help="For photos: 1 or 3.")] = 3,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Picture of a sample, .png.")
    ] = None,
) -> None:
    """Print what a pool holds."""
    from instahide_fl.data.pool_manifest import build_facts, read_manifest

    refuse_existing(picture)
    mixing_pool = _open_pool(pool, image_size, channels)
    folder, shape = mixing_pool.folder, mixing_pool.image_shape
    rows = [
        ("pool", folder),
        ("source", mixing_pool.source),
        *(build_facts(read_manifest(folder)) if folder else ()),
        ("images", f"{len(mixing_pool):,}"),
        ("image", "x".join(map(str, shape)) + " (C x H x W), uint8"),
        ("size", f"{mixing_pool.images.numel() / 1e6:.1f} MB"),
        ("sha256", mixing_pool.sha256),
    ]
    print_rows(*rows)
    give_result(
        {
            "pool": folder or "photos",
            "images": len(mixing_pool),
            "image_shape": list(shape),
            "sha256": mixing_pool.sha256,
            "facts": dict(build_facts(read_manifest(folder))) if folder else {},
        }
    )
    if picture is not None:
        import torch

        from instahide_fl.pictures.contact_sheet import save_contact_sheet

        pictures = [("", images) for images in torch.split(mixing_pool.sample(), 10)]
        save_contact_sheet(picture, pictures, f"{len(mixing_pool):,} images: a sample")


@pool_app.command("verify", cls=ResultCommand)
def pool_verify(
    pool: Annotated[Path, typer.Argument(help="Folder of a pool, or photos.")],
    image_size: Annotated[int, typer.Option(help="For photos: side in pixels.")] = 32,
    channels: Annotated[int, typer.Option(help="For photos: 1 or 3.")] = 3,
) -> None:
    """Read every pixel of a pool and compare it with the pool's digest."""
    mixing_pool = _open_pool(pool, image_size, channels)
    with console.status("reading"):
        mixing_pool.verify()
    console.print(f"{len(mixing_pool):,} images match sha256 {mixing_pool.sha256}")
    give_result({"images": len(mixing_pool), "sha256": mixing_pool.sha256})


def _open_pool(pool: Path, image_size: int, channels: int) -> MixingPool:
    from instahide_fl.data.pool import MixingPool

    if str(pool) == "photos":
        with console.status("cutting photographs"):
            return MixingPool.photos(image_size, channels)
    return MixingPool.open(pool)
