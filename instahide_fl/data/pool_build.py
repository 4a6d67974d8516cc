"""Builds a mixing pool from images in folders or archives, on all cores and resumably.

Finished chunks lie in the folder `POOL.building` beside the result. Each has its own
images, named by their place in the sorted listing, so the pool is the same for any
number of processes and interruptions, and no more than some chunks are in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from instahide_fl.data.data_report import DataWarning, LeftOut
from instahide_fl.data.npy_files import write_npy_block, write_npy_header
from instahide_fl.data.picture_listing import PictureStore
from instahide_fl.data.pool_manifest import (
    IMAGES,
    MANIFEST,
    build_facts,
    describe,
    new_hasher,
    read_manifest,
)
from instahide_fl.data.pool_patches import (
    CutReport,
    Pixels,
    PoolBuildOptions,
    cut_images,
)
from instahide_fl.data.pool_source import PoolSource, open_pool_source
from instahide_fl.data.pool_workers import run_in_processes
from instahide_fl.errors import OutputError, PoolError
from instahide_fl.files import atomic_file, explained, sole_writer, write_text
from instahide_fl.terminal import printable

DESCRIPTION = "build.json"
# Another version may decode, detect or shrink otherwise.
PACKAGES = ("opencv-python-headless", "pillow", "numpy")
CHUNK_IMAGES = 64
CHUNK_BYTES = 2**24  # of patches: large patches make smaller chunks

Chunks: TypeAlias = Mapping[Path, Sequence[str]]
"""For each chunk's file the images whose patches it holds, by name."""

Progress: TypeAlias = Callable[[int, int, int], None]
"""Told how many images are done, how many there are, and how many patches are kept."""


@dataclass(frozen=True)
class BuiltPool:
    """A finished pool and what became of its source.

    Attributes:
        folder: The pool, for `MixingPool.open`.
        sha256: Hex digest of shape and pixels.
        report: Counts, and the first files that could not be read.
        left_out: Files of the source that are no pictures, by reason.
        warnings: What the user should look at.
    """

    folder: Path
    sha256: str
    report: CutReport
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[DataWarning, ...] = ()

    def facts(self) -> list[tuple[str, str]]:
        """Return in words what was built, and what was left out."""
        headings = ("cannot read", *[""] * (len(self.report.failures) - 1))
        return [
            *build_facts(read_manifest(self.folder)),
            *zip(headings, map(printable, self.report.failures), strict=False),
            *(
                (
                    "left out",
                    f"{entry.count:,}: {entry.reason} ({', '.join(entry.examples)})",
                )
                for entry in self.left_out
            ),
            *(("warning", str(warning)) for warning in self.warnings),
        ]


def build_pool(
    source: Path,
    out: Path,
    options: PoolBuildOptions,
    jobs: int = 1,
    progress: Progress | None = None,
) -> BuiltPool:
    """Cut a pool from images, or continue an interrupted build.

    Args:
        source: Folder with images at any depth, an archive of one, a folder of
            archives, or a pattern such as `train-{0000..0009}.tar`.
        out: Folder of the pool; must not exist.
        options: The settings of the cut.
        jobs: Processes.
        progress: Told at the start and after each chunk.

    Raises:
        PoolError: the source has no usable image, or no patch passed the filter.
        OutputError: `out` exists, cannot be written, or was begun with other settings.
        EngineError: a worker process died.
    """
    if jobs < 1:
        raise PoolError(f"--jobs must be at least 1, got {jobs}")
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} exists already: choose another name")
    pictures = open_pool_source(source)
    work = out.with_name(f"{out.name}.building")
    with explained(work):
        work.mkdir(parents=True, exist_ok=True)
        with sole_writer(work):
            _begin_or_continue(work, _description(pictures, options))
            chunks = _divide(pictures.names, options, work)
            report = _cut_missing(pictures, chunks, options, jobs, progress)
            if not report.patches_kept:
                shutil.rmtree(work)
                raise PoolError(_why_empty(source, report, options))
            sha256 = _assemble(work / "pool", chunks, source, options, report)
            (work / "pool").rename(out)
            shutil.rmtree(work, ignore_errors=True)
    return BuiltPool(out, sha256, report, pictures.left_out, pictures.warnings)


def _description(source: PoolSource, options: PoolBuildOptions) -> dict[str, Any]:
    """Describe a build so that two which differ are never mixed."""
    listing = hashlib.sha256()
    for name in source.names:
        listing.update(repr(name).encode() + b"\n")
    return {
        "source": str(source.path.resolve()),
        "images": len(source.names),
        "listing": listing.hexdigest(),
        **({"archives": source.version} if source.version else {}),
        **asdict(options),
        **_versions(),
    }


def _versions() -> dict[str, str]:
    return {package: version(package) for package in PACKAGES}


def _begin_or_continue(work: Path, description: Mapping[str, Any]) -> None:
    """Create the working folder with the build's options, or check that they match."""
    if any(not path.name.startswith(".") for path in work.iterdir()):
        try:
            begun = json.loads((work / DESCRIPTION).read_text(encoding="utf-8"))
            differences = [
                f"{key.replace('_', '-')} {begun.get(key)}, now {value}"
                for key, value in description.items()
                if begun.get(key) != value
            ]
        except (OSError, ValueError, AttributeError):
            differences = [f"no readable {DESCRIPTION}"]
        if differences:
            raise OutputError(
                f"{work} holds an unfinished build of another kind "
                f"({'; '.join(differences)}): delete this folder to start anew, or "
                f"repeat its own command to continue"
            )
    write_text(work / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def _divide(names: Sequence[str], options: PoolBuildOptions, folder: Path) -> Chunks:
    """Divide a listing into chunks of bounded size."""
    image_bytes = options.crops * options.channels * options.size**2
    step = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // image_bytes))
    return {
        folder / f"chunk-{start:09d}.npz": names[start : start + step]
        for start in range(0, len(names), step)
    }


def _cut_missing(
    source: PoolSource,
    chunks: Chunks,
    options: PoolBuildOptions,
    jobs: int,
    progress: Progress | None,
) -> CutReport:
    """Cut the chunks that have no file yet, and add up what became of all images."""
    finished = {path: report for path in chunks if (report := _read_report(path))}
    calls = [
        (names, options, path) for path, names in chunks.items() if path not in finished
    ]
    num_images = sum(map(len, chunks.values()))
    earlier, total = sum(finished.values(), CutReport()), CutReport()
    # Closed here: if `progress` raises, no worker outlives this function.
    cutting = run_in_processes(_cut_chunk, calls, jobs, shared=(source.store,))
    with contextlib.closing(cutting) as reports:
        for report in itertools.chain([earlier], reports):
            total += report
            if progress:
                progress(total.images, num_images, total.patches_kept)
    return total


def _cut_chunk(
    store: PictureStore, names: Sequence[str], options: PoolBuildOptions, path: Path
) -> CutReport:
    """Cut some images in a worker process and write them to a file, atomically."""
    images, report = cut_images(store, names, options)
    text = np.frombuffer(json.dumps(asdict(report)).encode(), np.uint8)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=images, report=text)
    return report


def _read_report(path: Path) -> CutReport | None:
    """Read only the report of a chunk; None if its file is missing or damaged."""
    try:
        with np.load(path) as chunk:
            values = json.loads(chunk["report"].tobytes())
            return CutReport(**{**values, "failures": tuple(values["failures"])})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _read_images(path: Path) -> Pixels:
    """Read a chunk's patches, u8[n,C,size,size]; remove a file that is damaged."""
    try:
        with np.load(path) as chunk:
            images: Pixels = chunk["images"]
    except (ValueError, EOFError, zipfile.BadZipFile):
        path.unlink()
        raise OutputError(
            f"{path} was damaged and is removed: the same command continues"
        ) from None
    return images


def _assemble(
    folder: Path,
    chunks: Iterable[Path],
    source: Path,
    options: PoolBuildOptions,
    report: CutReport,
) -> str:
    """Write images and manifest, a chunk at a time, and return the digest."""
    folder.mkdir(exist_ok=True)
    shape = (report.patches_kept, options.channels, options.size, options.size)
    hasher = new_hasher(shape)
    histogram = np.zeros((options.channels, 256), np.int64)
    with (folder / IMAGES).open("wb") as file:
        write_npy_header(file, shape)
        for path in chunks:
            images = _read_images(path)
            hasher.update(write_npy_block(file, images))
            for channel, channel_counts in enumerate(histogram):
                channel_counts += np.bincount(images[:, channel].ravel(), minlength=256)
    counts = asdict(report)
    del counts["failures"]
    how = asdict(options)
    del how["size"], how["channels"]  # the shape says them
    if options.value_range is None:
        del how["value_range"]
    manifest = {
        **describe(
            shape,
            f"{source.resolve().name}: patches of {report.images:,} images",
            _statistics(histogram),
            hasher.hexdigest(),
        ),
        **how,
        "counts": counts,
        "versions": _versions(),
    }
    text = json.dumps(manifest, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return hasher.hexdigest()


def _statistics(histogram: np.ndarray[Any, Any]) -> tuple[list[float], list[float]]:
    """Compute mean and spread of each channel from its values' counts, i64[C,256]."""
    values = np.arange(256) / 255
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ values
    # [C,256]: each value's distance from its channel's mean
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    std[std < 1e-6] = 1.0  # as ChannelStatistics.of: a constant channel keeps its scale
    return mean.tolist(), std.tolist()


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
            f"{printable(report.failures[0])}"
        )
    return (
        f"none of the {report.images:,} images below {source} can be used: "
        f"{report.too_small:,} are smaller than --size {options.size}, "
        f"{report.unreadable:,} cannot be read: choose a smaller --size"
    )
