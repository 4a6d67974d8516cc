"""Builds a mixing pool from any tree of images, on all cores and resumably.

Finished chunks lie in the folder `POOL.building` beside the result. Each has its own
images, named by their place in the sorted listing, so the pool is the same for any
number of processes and interruptions, and no more than some chunks are in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from instahide_fl.data.image_tree import SUFFIXES, list_images
from instahide_fl.data.npy_files import write_npy_block, write_npy_header
from instahide_fl.data.pool_chunks import Chunk, Progress, cut_all, divide
from instahide_fl.data.pool_manifest import (
    IMAGES,
    MANIFEST,
    describe,
    new_hasher,
    read_manifest,
)
from instahide_fl.data.pool_patches import (
    CutReport,
    Pixels,
    PoolBuildOptions,
    read_chunk,
)
from instahide_fl.errors import OutputError, PoolError
from instahide_fl.files import explained, sole_writer, write_text

DESCRIPTION = "build.json"
# Another version may decode, detect or shrink otherwise.
PACKAGES = ("opencv-python-headless", "pillow", "numpy")


@dataclass(frozen=True)
class BuiltPool:
    """A finished pool and what became of its source.

    Attributes:
        folder: `MixingPool.open` maps it.
        sha256: hex digest of shape and pixels.
        report: counts, and the first files that could not be read.
    """

    folder: Path
    sha256: str
    report: CutReport

    def facts(self) -> list[tuple[str, str]]:
        """Return in words what was built, and which files could not be read."""
        names = ("cannot read", *[""] * (len(self.report.failures) - 1))
        return [
            *build_facts(read_manifest(self.folder)),
            *zip(names, map(_printable, self.report.failures), strict=False),
        ]


def build_pool(
    source: Path,
    out: Path,
    options: PoolBuildOptions,
    jobs: int = 1,
    progress: Progress | None = None,
) -> BuiltPool:
    """Cut a pool from the images below a folder, or continue an interrupted build.

    Args:
        source: folder with images at any depth.
        out: folder of the pool; must not exist.
        options: how to cut.
        jobs: processes.
        progress: called with images done, images in all, and patches kept.

    Raises:
        PoolError: the source has no usable image, or no patch passed the filter.
        OutputError: `out` exists, cannot be written, or was begun with other settings.
        EngineError: a worker process died.
    """
    if jobs < 1:
        raise PoolError(f"--jobs must be at least 1, got {jobs}")
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} exists already: choose another name")
    names = list_images(source)
    if not names:
        raise PoolError(f"no images below {source}: looked for {', '.join(SUFFIXES)}")
    work = out.with_name(f"{out.name}.building")
    with explained(work), _opened(work, _description(source, names, options)):
        chunks = divide(names, options, work)
        report = cut_all(source, chunks, options, jobs, progress)
        if not report.patches_kept:
            shutil.rmtree(work)
            raise PoolError(_why_empty(source, report, options))
        (work / "pool").mkdir(exist_ok=True)
        sha256 = _assemble(work / "pool", chunks, source, options, report)
        (work / "pool").rename(out)
        shutil.rmtree(work, ignore_errors=True)
    return BuiltPool(out, sha256, report)


def build_facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return in words how a pool was built; nothing for one that was not built here.

    Args:
        manifest: of the pool.
    """
    if "counts" not in manifest:
        return []
    counts, least = manifest["counts"], manifest["min_keypoints"]
    tried, kept = counts["patches_tried"], counts["patches_kept"]
    return [
        (
            "built from",
            f"{counts['images']:,} images, {counts['unreadable']:,} unreadable, "
            f"{counts['too_small']:,} too small",
        ),
        (
            "patches",
            f"{manifest['crops']} of {manifest['patch_size']} pixels from each image, "
            f"seed {manifest['seed']}",
        ),
        ("filter", f"more than {least} SIFT key points" if least else "none"),
        ("kept", f"{kept:,} of {tried:,} patches ({kept / tried:.1%})"),
    ]


def _description(
    source: Path, names: Sequence[str], options: PoolBuildOptions
) -> dict[str, Any]:
    """Describe a build so that two which differ are never mixed."""
    hasher = hashlib.sha256()
    for name in names:
        hasher.update(repr(name).encode() + b"\n")
    return {
        "source": str(source.resolve()),
        "images": len(names),
        "listing": hasher.hexdigest(),
        **asdict(options),
        **{package: version(package) for package in PACKAGES},
    }


@contextlib.contextmanager
def _opened(work: Path, description: Mapping[str, Any]) -> Iterator[None]:
    """Make or continue the working folder, and keep other processes out of it."""
    work.mkdir(parents=True, exist_ok=True)
    with sole_writer(work):
        _check_same(work, description)
        write_text(work / DESCRIPTION, json.dumps(description, indent=2) + "\n")
        yield


def _check_same(work: Path, description: Mapping[str, Any]) -> None:
    if all(path.name.startswith(".") for path in work.iterdir()):
        return
    try:
        begun = json.loads((work / DESCRIPTION).read_text(encoding="utf-8"))
        differing = [
            f"{key.replace('_', '-')} {begun.get(key)}, now {value}"
            for key, value in description.items()
            if begun.get(key) != value
        ]
    except (OSError, ValueError, AttributeError):
        differing = [f"no readable {DESCRIPTION}"]
    if differing:
        raise OutputError(
            f"{work} holds an unfinished build of another kind ({'; '.join(differing)})"
            f": delete this folder to start anew, or repeat its own command to continue"
        )


def _assemble(
    folder: Path,
    chunks: Sequence[Chunk],
    source: Path,
    options: PoolBuildOptions,
    report: CutReport,
) -> str:
    """Write images and manifest, a chunk at a time, and return the digest."""
    shape = (report.patches_kept, options.channels, options.size, options.size)
    hasher = new_hasher(shape)
    histogram = np.zeros((options.channels, 256), np.int64)
    with (folder / IMAGES).open("wb") as file:
        write_npy_header(file, shape)
        for chunk in chunks:
            images, counted = _read(chunk.path)
            pixels = write_npy_block(file, images)
            if len(images):
                hasher.update(pixels)
            histogram += counted
    counts = asdict(report)
    del counts["failures"]
    words = f"{source.resolve().name}: patches of {report.images:,} images"
    built = asdict(options)
    del built["size"], built["channels"]  # the shape says them
    manifest = {
        **describe(shape, words, _statistics(histogram), hasher.hexdigest()),
        **built,
        "counts": counts,
        "versions": {package: version(package) for package in PACKAGES},
    }
    text = json.dumps(manifest, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return hasher.hexdigest()


def _read(path: Path) -> tuple[Pixels, np.ndarray[Any, Any]]:
    try:
        return read_chunk(path)
    except (ValueError, EOFError, zipfile.BadZipFile):
        path.unlink()
        raise OutputError(
            f"{path} was damaged and is removed: the same command continues"
        ) from None


def _statistics(histogram: np.ndarray[Any, Any]) -> tuple[list[float], list[float]]:
    """Compute mean and spread of each channel from its values' counts, i64[C,256]."""
    values = np.arange(256) / 255
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    std[std < 1e-6] = 1.0  # as ChannelStatistics.of: a constant channel keeps its scale
    return mean.tolist(), std.tolist()


def _printable(name: str) -> str:
    """Replace bytes of a file's name that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _why_empty(source: Path, report: CutReport, options: PoolBuildOptions) -> str:
    if report.patches_tried:
        return (
            f"no patch passed the filter ({report.images:,} images, "
            f"{report.patches_tried:,} patches of at most {options.patch_size} pixels, "
            f"at best {report.most_keypoints} key points): --min-keypoints is "
            f"{options.min_keypoints}, lower it (0 keeps every patch) or raise "
            f"--patch-size"
        )
    if report.unreadable == report.images:
        return (
            f"none of the {report.images:,} images below {source} can be read: "
            f"{_printable(report.failures[0])}"
        )
    return (
        f"none of the {report.images:,} images below {source} can be used: "
        f"{report.too_small:,} are smaller than --size {options.size}, "
        f"{report.unreadable:,} cannot be read: choose a smaller --size"
    )
