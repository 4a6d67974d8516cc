"""Data sets that do not fit into memory: time and peak memory of reading and of runs.

`python -m benchmarks.large_data` writes random images of 3x32x32 as a folder per class,
as WebDataset shards and as Parquet, and measures `data info` (first with decoding, then
from the cache) and `run` on each engine. Memory is counted without mapped files: pages
of the decoded images belong to the system, which takes them back when it needs them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.reporting import run_and_save

COMMAND = (sys.executable, "-c", "from instahide_fl.cli import main; main()")
NUM_IMAGES, SIDE, NUM_CLASSES = 100_000, 32, 50
TEST_SHARE = 0.2
IMAGES_PER_SHARD = 10_000
RUN_SETTINGS = {
    "partition.num-clients": 10,
    "train.rounds": 2,
    "train.batch-size": 256,
    "train.mode": "update",
    "model.name": "mlp",
}
SAMPLE_SECONDS = 0.05


def main() -> None:
    """Measure, show the figures and write their file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--kinds", nargs="*", default=list(WRITERS))
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory())
        )
        run_and_save(lambda: measure(folder, arguments.images, arguments.kinds))


def measure(folder: Path, num_images: int, kinds: list[str]) -> dict[str, Any]:
    """Measure every kind of data set, with a cache of its own.

    Args:
        folder: Where data sets, caches and runs are written; data sets that are there
            already are used again.
        num_images: Number of images of each data set.
        kinds: Names of `WRITERS`.
    """
    rows, microseconds = [], {}
    for kind in kinds:
        source = folder / f"{kind}-{num_images}"
        if not source.exists():
            unfinished = source.with_name(f"{source.name}.unfinished")
            WRITERS[kind](unfinished, num_images)
            unfinished.rename(source)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            measured = _measure_dataset(f"{PREFIXES[kind]}:{source}", Path(name))
        decoding, cached = (row["seconds"] for row in measured[:2])
        microseconds[kind] = (decoding - cached) / num_images * 1e6
        rows += [{"data set": kind, **row} for row in measured]
    return {
        "name": "large-data",
        "rows": rows,
        "images": num_images,
        "microseconds_an_image": microseconds,
    }


def _measure_dataset(dataset: str, work: Path) -> list[dict[str, Any]]:
    info = ["data", "info", dataset]
    settings = [f"--set={key}={value}" for key, value in RUN_SETTINGS.items()]
    run = ["run", f"--set=data.dataset={dataset}", *settings]
    commands = {
        "data info, decoding": info,
        "data info, from the cache": info,
        "run, engine inline": [*run, "--engine=inline", f"--out={work / 'inline'}"],
        "run, engine ray": [*run, "--engine=ray", f"--out={work / 'ray'}"],
    }
    rows = []
    for title, command in commands.items():
        watched = watch(command, work / "cache")
        rows.append(
            {
                "command": title,
                "seconds": watched["seconds"],
                "largest process, MB": watched["largest"],
                "all processes, MB": watched["total"],
            }
        )
    return rows


def watch(arguments: list[str], cache: Path) -> dict[str, float]:
    """Run a command and return its seconds and peak memory, MB.

    Args:
        arguments: The command's arguments.
        cache: Folder of the cache.
    """
    peak = {"largest": 0.0, "total": 0.0}
    start = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.DEVNULL,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "INSTAHIDE_FL_CACHE": str(cache),
        },
    )
    while process.poll() is None:
        private, shared = _memory(process.pid)
        peak["largest"] = max(peak["largest"], *private, 0.0)
        peak["total"] = max(peak["total"], sum(private) + max(shared, default=0.0))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with {process.returncode}")
    return {"seconds": time.perf_counter() - start, **peak}


def _memory(pid: int) -> tuple[list[float], list[float]]:
    """Return private and shared memory of a process and its descendants, MB.

    Mapped files count as neither.
    """
    private, shared = [], []
    with contextlib.suppress(psutil.Error):  # ended meanwhile
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                fields = dict(line.split(":", 1) for line in status.splitlines())
                if "RssAnon" in fields:  # a process that has just ended has none
                    private.append(int(fields["RssAnon"].split()[0]) * 1024 / 1e6)
                    shared.append(int(fields["RssShmem"].split()[0]) * 1024 / 1e6)
    return private, shared


def _pictures(num_images: int) -> Iterator[tuple[str, int, bytes]]:
    """Yield part, class and PNG file of each image."""
    rng = np.random.default_rng(0)
    num_test = round(num_images * TEST_SHARE)
    for number in range(num_images):
        pixels = rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png", compress_level=1)
        part = "test" if number < num_test else "train"
        yield part, number % NUM_CLASSES, file.getvalue()


def _write_folder(folder: Path, num_images: int) -> None:
    for part in ("train", "test"):
        for label in range(NUM_CLASSES):
            (folder / part / f"class-{label:02d}").mkdir(parents=True)
    for number, (part, label, data) in enumerate(_pictures(num_images)):
        (folder / part / f"class-{label:02d}" / f"{number:06d}.png").write_bytes(data)


def _write_shards(folder: Path, num_images: int) -> None:
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        tars: dict[str, tarfile.TarFile] = {}
        for number, (part, label, data) in enumerate(_pictures(num_images)):
            shard = f"{part}-{number // IMAGES_PER_SHARD:04d}"
            if shard not in tars:
                tars[shard] = stack.enter_context(
                    tarfile.open(folder / f"{shard}.tar", "w")
                )
            for suffix, content in (("png", data), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"{number:06d}.{suffix}")
                entry.size = len(content)
                tars[shard].addfile(entry, io.BytesIO(content))


def _write_parquet(folder: Path, num_images: int) -> None:
    import datasets

    folder.mkdir(parents=True)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(
                names=[f"class-{label:02d}" for label in range(NUM_CLASSES)]
            ),
        }
    )
    rows: dict[str, dict[str, list[Any]]] = {
        part: {"image": [], "label": []} for part in ("train", "test")
    }
    for part, label, data in _pictures(num_images):
        rows[part]["image"].append({"bytes": data, "path": None})
        rows[part]["label"].append(label)
    for part, columns in rows.items():
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(folder / f"{part}-00000-of-00001.parquet")


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "folder": _write_folder,
    "webdataset": _write_shards,
    "parquet": _write_parquet,
}
PREFIXES = {"folder": "imagefolder", "webdataset": "webdataset", "parquet": "hf"}


if __name__ == "__main__":
    main()
