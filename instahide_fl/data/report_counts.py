"""Counts the images of a data set for its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instahide_fl.data.data_report import (
    DataFindings,
    DataReport,
    DataWarning,
    examples,
)
from instahide_fl.data.duplicates import ImageHashes, find_first_copies
from instahide_fl.terminal import counted

MIN_SHARE_OF_ONE_COLOUR = 0.05  # of the images, that a warning names


@dataclass(frozen=True)
class PartContents:
    """What is counted of one part.

    Attributes:
        targets: i64[N], classes 0..K-1.
        hashes: The hashes of the images' pixels, u64[N,2].
        is_one_colour: bool[N], whether all pixels of an image are equal.
    """

    targets: np.ndarray[Any, np.dtype[np.int64]]
    hashes: ImageHashes
    is_one_colour: np.ndarray[Any, np.dtype[np.bool_]]


def build_report(
    dataset: str,
    parts: Mapping[str, PartContents],
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
    findings: DataFindings,
) -> DataReport:
    """Count images and join the counts with what reading and decoding found.

    Args:
        dataset: The value of `data.dataset`.
        parts: The part `train`, and `test` where there is one.
        class_names: Names of the K classes.
        image_shape: (C, H, W) of the decoded images.
        findings: What reading and decoding found.
    """
    channels, height, width = image_shape
    contents = list(parts.values())
    targets = np.concatenate([part.targets for part in contents])
    counts = np.bincount(targets, minlength=len(class_names)).tolist()
    one_colour = sum(int(part.is_one_colour.sum()) for part in contents)
    # Training images come first, so a test image that is among them too has its first
    # copy there.
    first_copies = find_first_copies(np.concatenate([part.hashes for part in contents]))
    num_train = len(parts["train"].targets)
    across = int((first_copies[num_train:] < num_train).sum())
    warnings = [
        *findings.source.warnings,
        *findings.pixels.warnings,
        *_duplicate_warnings(first_copies, targets, num_train, across),
        *_one_colour_warnings(one_colour, len(targets)),
        *_untested_warnings(parts, class_names),
    ]
    return DataReport(
        dataset=dataset,
        parts={name: len(part.targets) for name, part in parts.items()},
        classes=dict(zip(class_names, counts, strict=True)),
        channels=channels,
        height=height,
        width=width,
        levels=findings.levels,
        duplicates=int((first_copies != np.arange(len(first_copies))).sum()),
        duplicates_across_parts=across,
        one_colour=one_colour,
        source=findings.source,
        pixels=findings.pixels,
        warnings=tuple(warnings),
    )


def _duplicate_warnings(
    first_copies: np.ndarray[Any, np.dtype[np.int64]],
    targets: np.ndarray[Any, np.dtype[np.int64]],
    num_train: int,
    across: int,
) -> Iterator[DataWarning]:
    if across:
        yield DataWarning(
            f"{across:,} of {counted(len(targets) - num_train, 'test image')} "
            f"{'is a training image' if across == 1 else 'are training images'} too",
            "set data.drop-duplicates = true, or remove them from one part",
        )
    relabelled = int((targets != targets[first_copies]).sum())
    if relabelled:
        yield DataWarning(
            f"{counted(relabelled, 'image equals', 'images equal')} an image of "
            f"another class pixel by pixel",
            "find them, with fdupes if they are files, and correct the labels",
        )


def _untested_warnings(
    parts: Mapping[str, PartContents], class_names: Sequence[str]
) -> Iterator[DataWarning]:
    if "test" not in parts:
        return
    count = len(class_names)
    trained, tested = (
        np.bincount(parts[name].targets, minlength=count) > 0
        for name in ("train", "test")
    )
    untested = [
        class_names[number] for number in np.flatnonzero(trained & ~tested).tolist()
    ]
    if untested:
        yield DataWarning(
            f"{len(untested)} of {count} classes have training images and no test "
            f"image: {examples(untested)}",
            "add images of them, or test on a part that has all classes",
        )


def _one_colour_warnings(one_colour: int, total: int) -> Iterator[DataWarning]:
    if one_colour >= MIN_SHARE_OF_ONE_COLOUR * total:
        yield DataWarning(
            f"{one_colour:,} of {counted(total, 'image')} "
            f"{'is' if one_colour == 1 else 'are'} of a single colour",
            "look at them: exports that failed look so",
        )
