"""Decoded data sets on disk: `.npy` files that all processes of a machine map.

The folder of a data set holds `description.json` (class names, digest, channel
statistics and what reading and decoding found) and the files of each part (`train` and
`test`, or `all`; `cached_parts`). What is drawn from a decoded data set lies beside it:
FOLDER-unique holds no image twice, FOLDER-seed-N is divided into training and test.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instahide_fl.config import DataConfig
from instahide_fl.data.cached_parts import (
    CHUNK_BYTES,
    CachedPart,
    damaged,
    map_images,
    open_part,
    select_rows,
    write_part,
)
from instahide_fl.data.data_report import DRAWN_BY_SEED, DataFindings, LeftOut
from instahide_fl.data.duplicates import rows_without_copies
from instahide_fl.data.image_checks import (
    check_classes_remain,
    check_content,
    check_decoded,
    check_divisible,
    constant_channel_warnings,
    count_levels,
    few_levels_warnings,
    relabelled_warnings,
)
from instahide_fl.data.picture_decoding import PixelFormat, decode_part
from instahide_fl.data.picture_survey import survey_pictures
from instahide_fl.data.sources.base import DatasetPart, DatasetSource
from instahide_fl.files import atomic_folder, cache_folder, remove_abandoned_folders
from instahide_fl.rng import stream
from instahide_fl.types import ChannelStatistics

DESCRIPTION = "description.json"
# Raise it when the cached files change, or a reader takes other rows of the same files.
CACHE_LAYOUT = 7
TEST_SHARE = 0.2  # of the images, where a data set comes without a test part


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
    folder = _prepared(cache_folder("datasets"), config, source)
    if _has_part(folder, "all"):
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
    folder = _prepared(root, config, source)
    part = "all" if _has_part(folder, "all") else "train"
    description = _description(folder)
    names = tuple(description["classes"])
    return open_part(folder, part), names, _findings(folder, description)


def _prepared(root: Path, config: DataConfig, source: DatasetSource) -> Path:
    """Return the folder of a decoded data set, without copies if that is asked for."""
    folder = _decoded(root, config, source)
    return _without_copies(folder) if config.drop_duplicates else folder


def _decoded(root: Path, config: DataConfig, source: DatasetSource) -> Path:
    """Return the folder below `root` with a decoded data set, made on first use."""
    name = config.dataset
    decoding = (config.image_size, config.channels, config.value_range)
    made_from = repr((CACHE_LAYOUT, source.identity, decoding)).encode()
    version = hashlib.sha256(made_from).hexdigest()[:16]
    folder = root / f"{_slug(name)}-{version}"
    if folder.is_dir():
        return folder
    remove_abandoned_folders(root)
    content = source.read()
    check_content(name, content)
    pixel_format, pixels = survey_pictures(list(content.parts.values()), config)
    with atomic_folder(folder) as temporary:
        for part_name, part in content.parts.items():
            blocks = decode_part(part, pixel_format)
            write_part(temporary, f"{name} ({part_name})", part_name, part, blocks)
        decoded = {part: open_part(temporary, part) for part in content.parts}
        check_decoded(name, decoded, config)
        levels = count_levels([part.images.numpy() for part in decoded.values()])
        warnings = (*pixels.warnings, *few_levels_warnings(levels, pixels))
        pixels = replace(pixels, warnings=warnings)
        findings = DataFindings(content.findings, pixels, len(levels))
        digest = _digest(temporary, content.parts, content.class_names)
        _describe(temporary, content.class_names, digest, findings)
    return folder


def _without_copies(folder: Path) -> Path:
    """Return the folder of the same data set without an image that equals another.

    Of equal images the first stays, and test images go before training images.
    """
    unique = folder.with_name(f"{folder.name}-unique")
    if unique.is_dir():
        return unique
    names = [name for name in ("all", "test", "train") if _has_part(folder, name)]
    parts = {name: open_part(folder, name) for name in names}
    rows = rows_without_copies({n: part.contents.hashes for n, part in parts.items()})
    dropped = [
        f"{name} image {row}"
        for name, part in parts.items()
        for row in np.setdiff1d(np.arange(len(part.targets)), rows[name]).tolist()
    ]
    if not dropped:
        return folder
    description = _description(folder)
    class_names = description["classes"]
    remaining = {name: select_rows(name, parts[name], rows[name]) for name in names}
    for name in names:
        before, after = parts[name].contents.targets, remaining[name].targets
        check_classes_remain(name, before, after, class_names)
    findings = _findings(folder, description)
    left_out = LeftOut.of("copies of other images (data.drop-duplicates)", dropped)
    left_out_entries = (*findings.source.left_out, left_out)
    warnings = (*findings.source.warnings, *relabelled_warnings(parts))
    source = replace(findings.source, left_out=left_out_entries, warnings=warnings)
    with atomic_folder(unique) as temporary:
        for name, part in remaining.items():
            blocks = decode_part(part, _as_decoded(parts[name]))
            write_part(temporary, unique.name, name, part, blocks)
        digest = _digest(temporary, remaining, class_names)
        findings = replace(findings, source=source)
        _describe(temporary, class_names, digest, findings)
    return unique


def _as_decoded(part: CachedPart) -> PixelFormat:
    """Return the format of images that are decoded already."""
    return PixelFormat(channels=part.images.shape[1], image_size=0)


def _has_part(folder: Path, name: str) -> bool:
    return (folder / f"{name}-images.npy").exists()


def _describe(
    folder: Path, class_names: Sequence[str], digest: str, findings: DataFindings
) -> None:
    description: dict[str, Any] = {"classes": list(class_names), "sha256": digest}
    if _has_part(folder, "train"):
        # Measured once and for all: on 50,000 images it takes seconds.
        images = torch.from_numpy(map_images(folder, "train"))
        chunk = max(1, min(4096, CHUNK_BYTES // images[0].numel()))
        statistics = ChannelStatistics.of(images, chunk)
        description |= {"mean": statistics.mean, "std": statistics.std}
        pixels = findings.pixels
        warnings = (*pixels.warnings, *constant_channel_warnings(statistics))
        findings = replace(findings, pixels=replace(pixels, warnings=warnings))
    description["findings"] = findings.to_json()
    (folder / DESCRIPTION).write_text(json.dumps(description))


def _digest(
    folder: Path, parts: Mapping[str, DatasetPart], class_names: Sequence[str]
) -> str:
    images = {name: map_images(folder, name) for name in parts}
    shapes = {name: pixels.shape for name, pixels in images.items()}
    hasher = hashlib.sha256(repr((shapes, list(class_names))).encode())
    for name, part in parts.items():
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
    all_images = open_part(folder, "all")
    order = stream(seed, "data", "split").permutation(len(all_images.targets))
    num_test = max(1, round(len(order) * TEST_SHARE))
    rows = {"train": order[num_test:], "test": order[:num_test]}
    parts = {name: select_rows(name, all_images, rows[name]) for name in rows}
    digest = hashlib.sha256(f"{description['sha256']} {seed}".encode()).hexdigest()
    findings = _divided_findings(_findings(folder, description))
    check_divisible(folder.name, all_images.contents.targets, description["classes"])
    with atomic_folder(divided) as temporary:
        for name, part in parts.items():
            blocks = decode_part(part, _as_decoded(all_images))
            write_part(temporary, divided.name, name, part, blocks)
        _describe(temporary, description["classes"], digest, findings)
    return divided


def _divided_findings(findings: DataFindings) -> DataFindings:
    """Describe where the parts come from that the seed divides."""
    everything = findings.source.parts_from.get("all", "all images")
    parts_from = {
        "train": f"{everything}, {1 - TEST_SHARE:.0%} {DRAWN_BY_SEED}",
        "test": f"{everything}, {TEST_SHARE:.0%} {DRAWN_BY_SEED}",
    }
    return replace(findings, source=replace(findings.source, parts_from=parts_from))


def _open(folder: Path) -> CachedDataset:
    description = _description(folder)
    count = len(description["classes"])
    parts = {name: open_part(folder, name) for name in ("train", "test")}
    for part in parts.values():
        if ((part.targets < 0) | (part.targets >= count)).any():
            raise damaged(folder, ValueError("an image has an unknown class"))
    return CachedDataset(
        train=parts["train"],
        test=parts["test"],
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
        raise damaged(folder, error) from None
    return description


def _findings(folder: Path, description: Mapping[str, Any]) -> DataFindings:
    try:
        return DataFindings.from_json(description["findings"])
    except (KeyError, ValueError) as error:
        raise damaged(folder, error) from None


def _slug(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    return safe[-40:].strip("-")
