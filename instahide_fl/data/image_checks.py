"""Refuses data sets that no training could use, and warns about doubtful pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from instahide_fl.config import DataConfig
from instahide_fl.data.cached_parts import CachedPart
from instahide_fl.data.data_report import (
    DataWarning,
    PixelFindings,
    examples,
)
from instahide_fl.data.duplicates import find_first_copies
from instahide_fl.data.sources.base import DatasetContent, ImageBlock
from instahide_fl.data.value_range import format_range
from instahide_fl.errors import DataError
from instahide_fl.types import ChannelStatistics

MIN_LEVELS = 32  # distinct values of a sample of images, without a warning
SAMPLE_IMAGES = 256  # of a part, whose distinct values are counted
CHANNEL_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}

Targets: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


def check_content(name: str, content: DatasetContent) -> None:
    """Refuse targets that no training could use, before pixels are decoded.

    Args:
        name: The value of `data.dataset`.
        content: The data set.

    Raises:
        DataError: A part is empty, lacks labels, or cannot be divided.
    """
    count = len(content.class_names)
    for part_name, part in content.parts.items():
        is_wrong = (part.targets < 0) | (part.targets >= count)
        if not len(part.targets) or is_wrong.any():
            raise DataError(
                f"data.dataset: {name} ({part_name}) has {len(part.targets)} images, "
                f"{int(is_wrong.sum())} of them without a label in 0..{count - 1}"
            )
    if "all" in content.parts:
        check_divisible(name, content.parts["all"].targets, content.class_names)


def check_divisible(name: str, targets: Targets, class_names: Sequence[str]) -> None:
    """Refuse to divide a data set with a class of one image.

    Args:
        name: The data set.
        targets: The class of each image, i64[N].
        class_names: Names of the K classes.

    Raises:
        DataError: Some classes have one image only.
    """
    sizes = np.bincount(targets, minlength=len(class_names))
    single = [class_names[row] for row in np.flatnonzero(sizes == 1).tolist()]
    if single:
        raise DataError(
            f"data.dataset: {name} has no test part, and {len(single)} of its "
            f"{len(class_names)} classes have one image only, which cannot be in both "
            f"parts: {examples(single)}: add images or give a test part"
        )


def check_classes_remain(
    part: str, before: Targets, after: Targets, class_names: Sequence[str]
) -> None:
    """Refuse to drop all images of a class.

    Args:
        part: The name of the part.
        before: The class of each image before copies are dropped, i64[N].
        after: The classes of those that remain, i64[n].
        class_names: Names of the K classes.

    Raises:
        DataError: Some classes have no image any more.
    """
    lost = [class_names[row] for row in np.setdiff1d(before, after).tolist()]
    if lost:
        raise DataError(
            f"data.drop-duplicates: without copies, {len(lost)} of "
            f"{len(class_names)} classes have no image in the part {part}: "
            f"{examples(lost)}: look at these images, or set data.drop-duplicates "
            f"= false"
        )


def relabelled_warnings(parts: Mapping[str, CachedPart]) -> Iterator[DataWarning]:
    """Warn about copies that are dropped although their classes differ.

    Args:
        parts: The parts, those first whose images stay.
    """
    contents = [part.contents for part in parts.values()]
    first_copies = find_first_copies(np.concatenate([c.hashes for c in contents]))
    targets = np.concatenate([part.targets for part in contents])
    relabelled = int((targets != targets[first_copies]).sum())
    if relabelled:
        yield DataWarning(
            f"{relabelled:,} of the copies that data.drop-duplicates drops "
            f"{'has' if relabelled == 1 else 'have'} another class than the image that "
            f"stays",
            "find them, with fdupes if they are files, and correct the labels",
        )


def check_decoded(
    name: str, parts: Mapping[str, CachedPart], config: DataConfig
) -> None:
    """Refuse decoded images that are all equal, or of another shape in each part.

    Args:
        name: The value of `data.dataset`.
        parts: The decoded parts.
        config: The table `[data]`.

    Raises:
        DataError: They are.
    """
    shapes = {part: tuple(images.images.shape[1:]) for part, images in parts.items()}
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{s[2]}x{s[1]} in {part}" for part, s in shapes.items())
        raise DataError(
            f"data.dataset: the images of {name} are not all of one size ({sizes}): "
            f"set data.image-size to a side in pixels, for instance 32"
        )
    hashes = np.concatenate([part.contents.hashes for part in parts.values()])
    if len(hashes) > 1 and (hashes == hashes[0]).all():
        further = ""
        if config.value_range != "auto":
            further = f", or data.value-range = {config.value_range}"
        raise DataError(
            f"data.dataset: all {len(hashes)} images of {name} have the same pixels, "
            f"so there is nothing to learn (transparent pixels are white): check the "
            f"files{further}"
        )


def count_levels(parts: Sequence[ImageBlock]) -> list[int]:
    """Return the distinct values in images drawn evenly from each part.

    Args:
        parts: The images of each part, u8[N,C,H,W].

    Returns:
        The values 0..255 that occur, in ascending order.
    """
    occurs = np.zeros(256, dtype=bool)
    for images in parts:
        numbers = np.linspace(0, len(images) - 1, SAMPLE_IMAGES, dtype=int)
        for number in np.unique(numbers):
            occurs[np.unique(images[number])] = True
    levels: list[int] = np.flatnonzero(occurs).tolist()
    return levels


def few_levels_warnings(
    levels: Sequence[int], pixels: PixelFindings
) -> Iterator[DataWarning]:
    """Warn about images of few distinct values.

    Args:
        levels: The values that occur, as `count_levels` returns them.
        pixels: How the pixels were mapped.
    """
    if len(levels) >= MIN_LEVELS:
        return
    extremes = pixels.stored_extremes or (levels[0], levels[-1])
    remedy = "look at them: masks and drawings look so, photographs do not"
    low, high = extremes
    if low < high and format_range(extremes) != format_range(pixels.value_range):
        remedy = (
            f"set data.value-range = {format_range(extremes)} unless they are masks"
        )
    yield DataWarning(
        f"the images have only {len(levels)} distinct values (from "
        f"{levels[0]} to {levels[-1]} of 0 to 255)",
        remedy,
    )


def constant_channel_warnings(statistics: ChannelStatistics) -> Iterator[DataWarning]:
    """Warn about channels with one value in all training images.

    Args:
        statistics: Mean and standard deviation of each channel.
    """
    # Images in [0, 1] never spread as far as 1: it stands for no spread at all.
    names = [
        name
        for name, std in zip(
            CHANNEL_NAMES[len(statistics.std)], statistics.std, strict=True
        )
        if std == 1.0
    ]
    if names:
        yield DataWarning(
            f"all training images have the same value everywhere in "
            f"{' and '.join(names)}",
            "check how they were exported",
        )
