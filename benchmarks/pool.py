"""Building a pool: the gain from a second core, and the bound on memory.

`python -m benchmarks.pool FOLDER` takes the images of a folder. Without one it cuts
pictures of ImageNet's usual size from photographs that scikit-image and scikit-learn
ship.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.reporting import alternate, run_and_save
from instahide_fl.data.pool_source import open_pool_source

COMMAND = (sys.executable, "-c", "from instahide_fl.cli import main; main()")
NUM_PICTURES, WIDTH, HEIGHT = 1000, 500, 375  # pixels
NUM_COPIES = 5  # of the source, in the build that shows that memory is bounded


def run(folder: Path | None = None, repeats: int = 3) -> dict[str, Any]:
    """Time builds with one and two processes, then watch the memory of others.

    Args:
        folder: Folder of images; None makes pictures.
        repeats: Number of timed builds for each number of processes.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = folder.resolve() if folder else write_pictures(work / "pictures")
        (work / "copies").mkdir()
        for number in range(NUM_COPIES):
            (work / "copies" / str(number)).symlink_to(source)
        builds = {str(jobs): partial(_build, work, source, jobs) for jobs in (1, 2)}
        seconds = alternate(builds, repeats)
        images = len(open_pool_source(source).names)
        rows = [
            {
                "images": images,
                "jobs": jobs,
                "images_per_second": images / seconds[str(jobs)],
                "ratio": seconds["1"] / seconds[str(jobs)],
                "peak RSS MB": _build(work, source, jobs, watch=True)[1],
            }
            for jobs in (1, 2)
        ]
        copies_seconds, peak = _build(work, work / "copies", 2, watch=True)
        rate = images * NUM_COPIES / copies_seconds
        rows.append(
            {
                "images": images * NUM_COPIES,
                "jobs": 2,
                "images_per_second": rate,
                "ratio": rate * seconds["1"] / images,
                "peak RSS MB": peak,
            }
        )
    return {"name": "pool-build", "rows": rows}


def write_pictures(folder: Path) -> Path:
    """Write pictures of ImageNet's usual size, and return the folder."""
    from instahide_fl.data.photos_pool import load_photos

    folder.mkdir()
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_photos()]
    for number in range(NUM_PICTURES):
        photo = photos[number % len(photos)]
        width = int(rng.uniform(0.6, 1) * min(photo.width, photo.height * 4 / 3))
        height = width * 3 // 4
        x = int(rng.integers(photo.width - width + 1))
        y = int(rng.integers(photo.height - height + 1))
        box = (x, y, x + width, y + height)
        picture = photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box)
        picture.save(folder / f"{number:04d}.jpg", quality=90)
    return folder


def _build(
    folder: Path, source: Path, jobs: int, *, watch: bool = False
) -> tuple[float, float]:
    """Build a pool and delete it; return seconds and peak MB (0 if not watched)."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        options = ("--out", str(Path(out) / "pool"), "--jobs", str(jobs))
        start, peak = time.perf_counter(), 0.0
        process = subprocess.Popen(
            [*COMMAND, "pool", "build", str(source), *options],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        while watch and process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(0.05)
        if process.wait():
            raise RuntimeError(f"pool build ended with {process.returncode}")
        return time.perf_counter() - start, peak


def _memory(pid: int) -> float:
    """Return the memory of a process and its descendants, MB."""
    total = 0
    with contextlib.suppress(psutil.Error):  # ended meanwhile
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    return total / 1e6


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    run_and_save(partial(run, folder))
