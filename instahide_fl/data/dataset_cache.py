"""Decoded data sets on disk: `.npy` files that all processes of a machine map.

A folder has, for each part (`train` and `test`, or `all`), `PART-images.npy`,
`PART-targets.npy` and, where it is known whose each image is, `PART-clients.npy`; and
`description.json` with class names, digest and channel statistics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instahide_fl.data.dataset_source import (
    DatasetContent,
    DatasetPart,
    DatasetSource,
    ImageBlock,
)
from instahide_fl.data.npy_files import (
    NPY_READ_ERRORS,
    write_npy_block,
    write_npy_header,
)
from instahide_fl.errors import DataError
from instahide_fl.files import atomic_folder, cache_folder
from instahide_fl.rng import stream
from instahide_fl.types import ChannelStatistics

DESCRIPTION = "description.json"
CACHE_LAYOUT = 3  # raise it when the cached files change
TEST_SHARE = 0.2  # of a data set that comes without a test part
CHUNK_BYTES = 2**24  # pixels looked at together


@dataclass(frozen=True)
class CachedPart:
    """One part of a decoded data set: u8[N,C,H,W], i64[N], i64[N] or None."""

    images: Tensor
    targets: Tensor
    client_ids: Tensor | None


@dataclass(frozen=True)
class CachedDataset:
    """A decoded data set, divided into training and test images.

    Attributes:
        train: mapped from disk.
        test: mapped from disk.
        class_names: K names.
        digest: sha256 (hex) of images and targets (and client ids, where known).
        statistics: of the training images.
    """

    train: CachedPart
    test: CachedPart
    class_names: tuple[str, ...]
    digest: str
    statistics: ChannelStatistics


def cached_dataset(
    name: str, source: DatasetSource, image_size: int, seed: int
) -> CachedDataset:
    """Open a data set, decoding it on first use.

    Args:
        name: as in `data.dataset`; part of the folder's name.
        source: where it comes from.
        image_size: side in pixels that its images were resized to.
        seed: divides training from test images where the source does not.

    Raises:
        DataError: it cannot be read, or the cached files are damaged.
        OutputError: the cache folder cannot be written.
    """
    folder = _decoded(cache_folder("datasets"), name, source, image_size)
    if (folder / "all-images.npy").exists():
        folder = _divided(folder, seed)
    return _open(folder)


def cached_images(
    root: Path, name: str, source: DatasetSource, image_size: int
) -> tuple[CachedPart, tuple[str, ...]]:
    """Open all images of a data set but those of a test part, decoding on first use.

    Args:
        root: folder to keep decoded images in.
        name: as in `data.dataset`; part of the folder's name.
        source: where it comes from.
        image_size: side in pixels that its images were resized to.

    Returns:
        The images, in the order of the source, and the names of the K classes.

    Raises:
        DataError: it cannot be read, or the cached files are damaged.
        OutputError: `root` cannot be written.
    """
    folder = _decoded(root, name, source, image_size)
    part = "all" if (folder / "all-images.npy").exists() else "train"
    return _open_part(folder, part), tuple(_description(folder)["classes"])


def _decoded(root: Path, name: str, source: DatasetSource, image_size: int) -> Path:
    """Return the folder below `root` with a decoded data set, made on first use."""
    made_from = repr((CACHE_LAYOUT, source.identity, image_size)).encode()
    version = hashlib.sha256(made_from).hexdigest()[:16]
    folder = root / f"{_slug(name)}-{version}"
    if not folder.is_dir():
        content = source.read()
        _check(name, content)
        with atomic_folder(folder) as temporary:
            _write(temporary, name, content)
            digest = _digest(temporary, content)
            _describe(temporary, content.class_names, digest)
    return folder


def _check(name: str, content: DatasetContent) -> None:
    """Refuse targets that no training could use, before pixels are decoded."""
    count = len(content.class_names)
    for part, rows in content.parts.items():
        wrong = (rows.targets < 0) | (rows.targets >= count)
        if not len(rows.targets) or wrong.any():
            raise DataError(
                f"data.dataset: {name} ({part}) has {len(rows.targets)} images, "
                f"{int(wrong.sum())} of them without a label in 0..{count - 1}"
            )
    if "all" in content.parts:
        sizes = np.bincount(content.parts["all"].targets, minlength=count)
        single = [content.class_names[row] for row in np.flatnonzero(sizes == 1)]
        if single:
            further = ", ..." if len(single) > 3 else ""
            raise DataError(
                f"data.dataset: {name} has no test part, and {len(single)} of its "
                f"{count} classes have one image only, which cannot be in both parts: "
                f"{', '.join(single[:3])}{further}: add images or give a test part"
            )


def _write(folder: Path, name: str, content: DatasetContent) -> None:
    for part, rows in content.parts.items():
        written = _write_images(folder, part, len(rows.targets), rows.blocks())
        if written != len(rows.targets):
            raise DataError(
                f"data.dataset: {name} ({part}) has {written} images and "
                f"{len(rows.targets)} labels"
            )
        np.save(folder / f"{part}-targets.npy", rows.targets)
        if rows.client_ids is not None:
            np.save(folder / f"{part}-clients.npy", rows.client_ids)


def _write_images(
    folder: Path, part: str, count: int, blocks: Iterable[ImageBlock]
) -> int:
    """Write images one block after another and return how many there were."""
    written = 0
    with (folder / f"{part}-images.npy").open("wb") as file:
        for block in blocks:
            if not written:
                write_npy_header(file, (count, *block.shape[1:]))
            write_npy_block(file, block)
            written += len(block)
    return written


def _describe(folder: Path, class_names: Sequence[str], digest: str) -> None:
    described: dict[str, Any] = {"classes": list(class_names), "sha256": digest}
    if (folder / "train-images.npy").exists():
        # Once and for all: on 50,000 images it takes seconds.
        images = torch.from_numpy(_mapped(folder, "train"))
        chunk = max(1, min(4096, CHUNK_BYTES // images[0].numel()))
        measured = ChannelStatistics.of(images, chunk)
        described |= {"mean": measured.mean, "std": measured.std}
    (folder / DESCRIPTION).write_text(json.dumps(described))


def _digest(folder: Path, content: DatasetContent) -> str:
    images = {part: _mapped(folder, part) for part in content.parts}
    shapes = {part: pixels.shape for part, pixels in images.items()}
    hasher = hashlib.sha256(repr((shapes, content.class_names)).encode())
    for part, rows in content.parts.items():
        pixels = images[part]
        block = max(1, CHUNK_BYTES // pixels[0].size)
        for start in range(0, len(pixels), block):
            hasher.update(np.ascontiguousarray(pixels[start : start + block]).data)
        hasher.update(np.ascontiguousarray(rows.targets).data)
        if rows.client_ids is not None:
            hasher.update(np.ascontiguousarray(rows.client_ids).data)
    return hasher.hexdigest()


def _divided(folder: Path, seed: int) -> Path:
    """Return the folder of a data set's training and test images for this seed.

    They are written in their new order, so that processes share them by memory map.
    """
    divided = folder.with_name(f"{folder.name}-seed-{seed}")
    if divided.is_dir():
        return divided
    described = _description(folder)
    whole = _open_part(folder, "all")
    order = stream(seed, "data", "split").permutation(len(whole.targets))
    held_out = max(1, round(len(order) * TEST_SHARE))
    rows = {"train": order[held_out:], "test": order[:held_out]}
    content = DatasetContent(
        {part: _selected(whole, chosen) for part, chosen in rows.items()},
        described["classes"],
    )
    digest = hashlib.sha256(f"{described['sha256']} {seed}".encode()).hexdigest()
    with atomic_folder(divided) as temporary:
        _write(temporary, divided.name, content)
        _describe(temporary, content.class_names, digest)
    return divided


def _selected(whole: CachedPart, rows: np.ndarray[Any, Any]) -> DatasetPart:
    images = whole.images.numpy()
    block = max(1, CHUNK_BYTES // images[0].size)
    ids = whole.client_ids
    return DatasetPart(
        whole.targets.numpy()[rows],
        lambda: (
            images[rows[start : start + block]] for start in range(0, len(rows), block)
        ),
        None if ids is None else ids.numpy()[rows],
    )


def _open(folder: Path) -> CachedDataset:
    described = _description(folder)
    return CachedDataset(
        _open_part(folder, "train"),
        _open_part(folder, "test"),
        tuple(described["classes"]),
        described["sha256"],
        ChannelStatistics(tuple(described["mean"]), tuple(described["std"])),
    )


def _description(folder: Path) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from None
    return described


def _open_part(folder: Path, part: str) -> CachedPart:
    clients = folder / f"{part}-clients.npy"
    try:
        return CachedPart(
            torch.from_numpy(_mapped(folder, part)),
            torch.from_numpy(np.load(folder / f"{part}-targets.npy")),
            torch.from_numpy(np.load(clients)) if clients.exists() else None,
        )
    except NPY_READ_ERRORS as error:
        raise _damaged(folder, error) from None


def _mapped(folder: Path, part: str) -> ImageBlock:
    # Mode "c" (copy on write) because torch warns about read-only memory.
    images: ImageBlock = np.load(folder / f"{part}-images.npy", mmap_mode="c")
    return images


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"the cached data set {folder} is damaged ({error}): delete that folder"
    )


def _slug(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    return safe[-40:].strip("-")
