"""Decoded data sets on disk: `.npy` files that all processes of a machine map.

The folder of a data set holds `description.json` (class names, digest, channel
statistics and what reading and decoding found) and, for each part (`train` and `test`,
or `all`), `PART-images.npy`, `PART-targets.npy`, `PART-hashes.npy` (of each image's
pixels), `PART-one-colour.npy` and, where the owner of each image is known,
`PART-clients.npy`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instahide_fl.config import DataConfig
from instahide_fl.data.data_report import DataFindings
from instahide_fl.data.duplicates import ImageHashes, hash_images, is_one_colour
from instahide_fl.data.npy_files import (
    NPY_READ_ERRORS,
    write_npy_block,
    write_npy_header,
)
from instahide_fl.data.picture_decoding import PixelFormat, decode_part, survey_pictures
from instahide_fl.data.report_counts import PartContents
from instahide_fl.data.sources.base import (
    DatasetContent,
    DatasetPart,
    DatasetSource,
    ImageBlock,
    ImageBlocks,
)
from instahide_fl.errors import DataError
from instahide_fl.files import atomic_folder, cache_folder
from instahide_fl.rng import stream
from instahide_fl.types import ChannelStatistics

DESCRIPTION = "description.json"
CACHE_LAYOUT = 4  # raise it when the cached files change
TEST_SHARE = 0.2  # of the images, where a data set comes without a test part
CHUNK_BYTES = 2**24  # of pixels that are in memory at a time
SAMPLE_IMAGES = 256  # of a part, whose distinct values are counted


@dataclass(frozen=True)
class CachedPart:
    """One part of a decoded data set.

    Attributes:
        images: u8[N,C,H,W], mapped from disk.
        targets: i64[N], classes 0..K-1.
        client_ids: i64[N], the number of each image's owner; None if unknown.
        contents: What the data report counts of these images.
    """

    images: Tensor
    targets: Tensor
    client_ids: Tensor | None
    contents: PartContents

    def sliced(self, rows: slice) -> CachedPart:
        """Keep some images, without a copy; owners without any lose their number.

        Args:
            rows: The rows to keep.
        """
        ids, contents = self.client_ids, self.contents
        if ids is not None:
            ids = torch.unique(ids[rows], return_inverse=True)[1]
        contents = PartContents(
            contents.targets[rows], contents.hashes[rows], contents.is_one_colour[rows]
        )
        return CachedPart(self.images[rows], self.targets[rows], ids, contents)


@dataclass(frozen=True)
class CachedDataset:
    """A decoded data set, divided into training and test images.

    Attributes:
        train: Training images.
        test: Test images.
        class_names: Names of the K classes.
        digest: sha256 (hex) of images and targets (and client ids, where known).
        statistics: Channel statistics of the training images.
        findings: What reading and decoding found.
    """

    train: CachedPart
    test: CachedPart
    class_names: tuple[str, ...]
    digest: str
    statistics: ChannelStatistics
    findings: DataFindings


def cached_dataset(
    config: DataConfig, source: DatasetSource, seed: int
) -> CachedDataset:
    """Open a data set, decoding it on first use.

    Args:
        config: The table `[data]`.
        source: The data set to decode.
        seed: Seed that divides training from test images where the source does not.

    Raises:
        DataError: the source cannot be read, or the cached files are damaged.
        OutputError: the cache folder cannot be written.
    """
    folder = _decoded(cache_folder("datasets"), config, source)
    if (folder / "all-images.npy").exists():
        folder = _divided(folder, seed)
    return _open(folder)


def cached_images(
    root: Path, config: DataConfig, source: DatasetSource
) -> tuple[CachedPart, tuple[str, ...], DataFindings]:
    """Open all images of a data set but those of a test part, decoding on first use.

    Args:
        root: Folder to keep decoded images in.
        config: The table `[data]`.
        source: The data set to decode.

    Returns:
        The images, in the order of the source; the names of the K classes; and what
        reading and decoding found.

    Raises:
        DataError: the source cannot be read, or the cached files are damaged.
        OutputError: `root` cannot be written.
    """
    folder = _decoded(root, config, source)
    part = "all" if (folder / "all-images.npy").exists() else "train"
    description = _description(folder)
    names = tuple(description["classes"])
    return _open_part(folder, part), names, _findings(folder, description)


def _decoded(root: Path, config: DataConfig, source: DatasetSource) -> Path:
    """Return the folder below `root` with a decoded data set, made on first use."""
    name = config.dataset
    decoding = (config.image_size, config.channels, config.value_range)
    made_from = repr((CACHE_LAYOUT, source.identity, decoding)).encode()
    version = hashlib.sha256(made_from).hexdigest()[:16]
    folder = root / f"{_slug(name)}-{version}"
    if not folder.is_dir():
        content = source.read()
        _check(name, content)
        parts = list(content.parts.values())
        pixel_format, pixels = survey_pictures(parts, config)
        with atomic_folder(folder) as temporary:
            for part_name, part in content.parts.items():
                blocks = decode_part(part, pixel_format)
                _write_part(temporary, f"{name} ({part_name})", part_name, part, blocks)
            digest = _digest(temporary, content)
            levels = _count_levels(_mapped(temporary, name) for name in content.parts)
            findings = DataFindings(content.findings, pixels, levels)
            _describe(temporary, content.class_names, digest, findings)
    return folder


def _check(name: str, content: DatasetContent) -> None:
    """Refuse targets that no training could use, before pixels are decoded."""
    count = len(content.class_names)
    for part_name, part in content.parts.items():
        is_wrong = (part.targets < 0) | (part.targets >= count)
        if not len(part.targets) or is_wrong.any():
            raise DataError(
                f"data.dataset: {name} ({part_name}) has {len(part.targets)} images, "
                f"{int(is_wrong.sum())} of them without a label in 0..{count - 1}"
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


def _write_part(
    folder: Path,
    title: str,
    name: str,
    part: DatasetPart,
    blocks: Iterable[ImageBlock],
) -> None:
    count = len(part.targets)
    num_written = _write_images(folder, name, count, blocks)
    if num_written != count:
        raise DataError(
            f"data.dataset: {title} has {num_written} images and {count} labels"
        )
    np.save(folder / f"{name}-targets.npy", part.targets)
    if part.client_ids is not None:
        np.save(folder / f"{name}-clients.npy", part.client_ids)


def _write_images(
    folder: Path, part: str, count: int, blocks: Iterable[ImageBlock]
) -> int:
    """Write images one block after another and return their number."""
    num_written = 0
    hashes: list[ImageHashes] = []
    one_colour: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    with (folder / f"{part}-images.npy").open("wb") as file:
        for block in blocks:
            if not num_written:
                write_npy_header(file, (count, *block.shape[1:]))
            write_npy_block(file, block)
            num_written += len(block)
            hashes.append(hash_images(block))
            one_colour.append(is_one_colour(block))
    if num_written:
        np.save(folder / f"{part}-hashes.npy", np.concatenate(hashes))
        np.save(folder / f"{part}-one-colour.npy", np.concatenate(one_colour))
    return num_written


def _count_levels(parts: Iterable[ImageBlock]) -> int:
    """Count the distinct values in images drawn evenly from each part."""
    occurs = np.zeros(256, dtype=bool)
    for images in parts:
        for number in np.linspace(0, len(images) - 1, SAMPLE_IMAGES, dtype=int):
            occurs[np.unique(images[number])] = True
    return int(occurs.sum())


def _describe(
    folder: Path, class_names: Sequence[str], digest: str, findings: DataFindings
) -> None:
    description: dict[str, Any] = {
        "classes": list(class_names),
        "sha256": digest,
        "findings": findings.to_json(),
    }
    if (folder / "train-images.npy").exists():
        # Measured once and for all: on 50,000 images it takes seconds.
        images = torch.from_numpy(_mapped(folder, "train"))
        chunk = max(1, min(4096, CHUNK_BYTES // images[0].numel()))
        statistics = ChannelStatistics.of(images, chunk)
        description |= {"mean": statistics.mean, "std": statistics.std}
    (folder / DESCRIPTION).write_text(json.dumps(description))


def _digest(folder: Path, content: DatasetContent) -> str:
    images = {name: _mapped(folder, name) for name in content.parts}
    shapes = {name: pixels.shape for name, pixels in images.items()}
    hasher = hashlib.sha256(repr((shapes, content.class_names)).encode())
    for name, part in content.parts.items():
        pixels = images[name]
        step = max(1, CHUNK_BYTES // pixels[0].size)
        for start in range(0, len(pixels), step):
            hasher.update(np.ascontiguousarray(pixels[start : start + step]).data)
        hasher.update(np.ascontiguousarray(part.targets).data)
        if part.client_ids is not None:
            hasher.update(np.ascontiguousarray(part.client_ids).data)
    return hasher.hexdigest()


def _divided(folder: Path, seed: int) -> Path:
    """Return the folder of a data set's training and test images for this seed.

    They are written in their new order, so that processes share them by memory map.
    """
    divided = folder.with_name(f"{folder.name}-seed-{seed}")
    if divided.is_dir():
        return divided
    description = _description(folder)
    all_images = _open_part(folder, "all")
    order = stream(seed, "data", "split").permutation(len(all_images.targets))
    num_test = max(1, round(len(order) * TEST_SHARE))
    rows = {"train": order[num_test:], "test": order[:num_test]}
    parts = {name: _selected(name, all_images, rows[name]) for name in rows}
    digest = hashlib.sha256(f"{description['sha256']} {seed}".encode()).hexdigest()
    findings = _divided_findings(_findings(folder, description))
    images = all_images.images
    with atomic_folder(divided) as temporary:
        for name, part in parts.items():
            blocks = decode_part(part, PixelFormat(images.shape[1], image_size=0))
            _write_part(temporary, divided.name, name, part, blocks)
        _describe(temporary, description["classes"], digest, findings)
    return divided


def _divided_findings(findings: DataFindings) -> DataFindings:
    """Describe where the parts come from that the seed divides."""
    everything = findings.source.parts_from.get("all", "all images")
    parts_from = {
        "train": f"{everything}, {1 - TEST_SHARE:.0%} drawn by the seed",
        "test": f"{everything}, {TEST_SHARE:.0%} drawn by the seed",
    }
    return replace(findings, source=replace(findings.source, parts_from=parts_from))


def _selected(name: str, part: CachedPart, rows: np.ndarray[Any, Any]) -> DatasetPart:
    """Return some images of a part, copied block by block when they are written."""
    images = part.images.numpy()
    step = max(1, CHUNK_BYTES // images[0].size)
    blocks = ImageBlocks(
        title=name,
        count=len(rows),
        channels=images.shape[1],
        blocks=lambda: (
            images[rows[start : start + step]] for start in range(0, len(rows), step)
        ),
    )
    ids = part.client_ids
    return DatasetPart(
        part.targets.numpy()[rows], blocks, None if ids is None else ids.numpy()[rows]
    )


def _open(folder: Path) -> CachedDataset:
    description = _description(folder)
    return CachedDataset(
        train=_open_part(folder, "train"),
        test=_open_part(folder, "test"),
        class_names=tuple(description["classes"]),
        digest=description["sha256"],
        statistics=ChannelStatistics(
            tuple(description["mean"]), tuple(description["std"])
        ),
        findings=_findings(folder, description),
    )


def _description(folder: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from None
    return description


def _findings(folder: Path, description: Mapping[str, Any]) -> DataFindings:
    try:
        return DataFindings.from_json(description["findings"])
    except (KeyError, ValueError) as error:
        raise _damaged(folder, error) from None


def _open_part(folder: Path, part: str) -> CachedPart:
    clients = folder / f"{part}-clients.npy"
    try:
        contents = PartContents(
            targets=np.load(folder / f"{part}-targets.npy"),
            hashes=np.load(folder / f"{part}-hashes.npy"),
            is_one_colour=np.load(folder / f"{part}-one-colour.npy"),
        )
        return CachedPart(
            images=torch.from_numpy(_mapped(folder, part)),
            targets=torch.from_numpy(contents.targets),
            client_ids=torch.from_numpy(np.load(clients)) if clients.exists() else None,
            contents=contents,
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
