"""Photographs of 224 pixels, ImageNet's size: memory of a run, and the encoder's speed.

`python -m benchmarks.photographs FOLDER` builds a pool of 224-pixel patches of the
photographs in FOLDER (at any depth), which it enlarges and divides into ten classes,
trains resnet-18 on encodings of them for a few rounds on each engine, and encodes
beside the usual ways to do it. Memory is counted without mapped files, as in
`benchmarks.large_data`.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.encoder import encode_straightforward, encode_vectorised
from benchmarks.large_data import watch
from benchmarks.reporting import alternate, run_and_save
from instahide_fl import EncoderConfig, InstaHideEncoder, MixingPool, PrivateSplit

SIDE, NUM_CLASSES, NUM_MIXED, BATCH_SIZE = 224, 10, 4, 32
SHORTER_SIDE = 256  # of the photographs, as in the usual evaluation on ImageNet
POOL_OPTIONS = ("--size=224", "--patch-size=224", "--min-keypoints=0", "--crops=1")
RUN_SETTINGS = {
    "data.image-size": SIDE,
    "model.name": "resnet-18",
    "model.normalization": "group",
    "model.sign-invariant": "true",
    "instahide.num-mixed": NUM_MIXED,
    "partition.num-clients": 2,
    "train.batch-size": 4,
    "train.rounds": 3,
    "train.evaluate-every": 3,
}


def main() -> None:
    """Measure, show the figures and write their file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--engines", nargs="*", default=["inline", "ray"])
    arguments = parser.parse_args()
    run_and_save(
        lambda: measure(arguments.photographs, arguments.count, arguments.engines)
    )


def measure(photographs: Path, count: int, engines: list[str]) -> dict[str, Any]:
    """Measure commands in turn, and the encoder.

    Args:
        photographs: Folder with photographs at any depth.
        count: Number of photographs to use.
        engines: Names of the engines to train with.
    """
    with TemporaryDirectory() as name:
        work = Path(name)
        _enlarge_into_classes(photographs, work / "classes", count)
        pool, dataset = work / "pool", f"imagefolder:{work / 'classes'}"
        settings = {**RUN_SETTINGS, "data.dataset": dataset, "pool.source": pool}
        run = ["run", *(f"--set={key}={value}" for key, value in settings.items())]
        info = ["data", "info", dataset, f"--set=data.image-size={SIDE}"]
        source = str(work / "classes" / "train")
        build = ["pool", "build", source, f"--out={pool}", *POOL_OPTIONS]
        commands = {"pool build": build, "data info, decoding": info}
        for engine in engines:
            out = f"--out={work / engine}"
            commands[f"run, engine {engine}"] = [*run, f"--engine={engine}", out]
        rows = []
        for command, arguments in commands.items():
            watched = watch(arguments, work / "cache")
            rows.append(
                {
                    "command": command,
                    "seconds": watched["seconds"],
                    "largest process, MB": watched["largest"],
                    "all processes, MB": watched["total"],
                }
            )
        speed = _encoder_speed(MixingPool.open(pool))
    return {
        "name": "photographs",
        "rows": rows,
        "photographs": count,
        "encoder": speed,
    }


def _enlarge_into_classes(photographs: Path, folder: Path, count: int) -> None:
    """Write photographs into train/ and test/ with ten classes, a fifth into test/.

    Their shorter side becomes 256 pixels, because a pool's patches are never enlarged.
    """
    paths = sorted(path for path in photographs.rglob("*") if path.is_file())[:count]
    for number, path in enumerate(paths):
        part = "test" if number % 5 == 0 else "train"
        label = NUM_CLASSES * number // len(paths)
        out = folder / part / f"class-{label}" / f"{number:06d}.jpg"
        out.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            scale = SHORTER_SIDE / min(picture.size)
            width, height = (round(side * scale) for side in picture.size)
            picture.convert("RGB").resize((width, height)).save(out, quality=90)


def _encoder_speed(pool: MixingPool, images: int = 200) -> dict[str, float]:
    """Return images encoded in a second of one core's time, and ratios, by variant.

    Args:
        pool: The pool, whose images stand for private ones too.
        images: Number of private images.
    """
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    split = PrivateSplit(pool.images[:images].clone(), torch.zeros(images).long(), 1)
    private = split.statistics.normalise(split.images)
    public = pool.statistics.normalise(pool.images)
    config, batch = EncoderConfig(num_mixed=NUM_MIXED), torch.arange(BATCH_SIZE)
    encoder = InstaHideEncoder(config, pool)
    variants = {
        "straightforward": partial(
            encode_straightforward, private, public, config, rng, batch
        ),
        "vectorised": partial(encode_vectorised, private, public, config, rng, batch),
        "instahide-fl": partial(encoder.encode, batch, split, rng),
    }
    medians = alternate(variants, 5, time.process_time)
    speed = {f"{name}, images/s": BATCH_SIZE / s for name, s in medians.items()}
    ours = medians["instahide-fl"]
    return speed | {f"times {n}": s / ours for n, s in list(medians.items())[:2]}


if __name__ == "__main__":
    main()
