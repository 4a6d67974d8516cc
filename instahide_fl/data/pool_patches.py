"""The recipe of a pool: random patches of each image, filtered by detail and shrunk.

The published recipe (challenge of Huang et al., 2020): several random crops of each
image, and of these only the ones in which SIFT finds more than 40 key points. They are
counted on the patch before it is shrunk: one of 32 pixels hardly ever has 40.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from instahide_fl.config.data import parse_value_range
from instahide_fl.data.picture_listing import PictureStore
from instahide_fl.data.picture_types import register_heif
from instahide_fl.data.sources.base import StoredPicture
from instahide_fl.data.stored_pictures import read_header, read_picture
from instahide_fl.data.value_range import map_to_8_bits
from instahide_fl.errors import PoolError
from instahide_fl.rng import stream

Pixels: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom

# "more than 40 key points" is the filter that the authors describe for their challenge.
MIN_KEYPOINTS = 40
MAX_FAILURES = 5  # unreadable files that a report names


@dataclass(frozen=True)
class PoolBuildOptions:
    """How a pool is cut from images.

    Attributes:
        size: Side of the pool's images, pixels.
        crops: Patches cut from each image, at distinct positions.
        min_keypoints: a patch is kept if it has more SIFT key points than this; 0 keeps
            every patch.
        patch_size: Side of a patch before it is shrunk, pixels. An image whose shorter
            side is less gives the largest square that fits.
        channels: 1 (grey) or 3 (colour).
        seed: Repeats the positions.
        value_range: `LOW:HIGH`, the stored values that become 0 and 255 in pictures
            with more than 8 bits a channel; without it they are not used.

    Raises:
        PoolError: an option is out of range.
    """

    size: int = 32
    crops: int = 4
    min_keypoints: int = MIN_KEYPOINTS
    patch_size: int = 128
    channels: int = 3
    seed: int = 0
    value_range: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("size", 4), ("crops", 1), ("min_keypoints", 0)):
            if (value := getattr(self, name)) < least:
                option = name.replace("_", "-")
                raise PoolError(f"--{option} must be at least {least}, got {value}")
        if self.channels not in (1, 3):
            raise PoolError(
                f"--channels must be 1 (grey) or 3 (colour), got {self.channels}"
            )
        if self.patch_size < self.size:
            raise PoolError(
                f"--patch-size is {self.patch_size}, --size {self.size}: patches are "
                f"shrunk, never enlarged: choose --patch-size {self.size} or more"
            )
        if self.value_range is not None:
            try:
                parse_value_range(self.value_range)
            except ValueError:
                raise PoolError(
                    f"--value-range must be LOW:HIGH with LOW < HIGH, for instance "
                    f"0:4095, got {self.value_range!r}"
                ) from None


@dataclass(frozen=True)
class CutReport:
    """What became of some images.

    Attributes:
        images: Files looked at.
        unreadable: Files among them that no decoder could read.
        too_small: Images among them with a side below the pool's size.
        patches_tried: Patches cut.
        patches_kept: Patches with enough key points.
        most_keypoints: Highest count in a patch; 0 without the filter.
        failures: The first unreadable files by name, each with the reason.
    """

    images: int = 0
    unreadable: int = 0
    too_small: int = 0
    patches_tried: int = 0
    patches_kept: int = 0
    most_keypoints: int = 0
    failures: tuple[str, ...] = ()

    def __add__(self, other: CutReport) -> CutReport:
        return CutReport(
            images=self.images + other.images,
            unreadable=self.unreadable + other.unreadable,
            too_small=self.too_small + other.too_small,
            patches_tried=self.patches_tried + other.patches_tried,
            patches_kept=self.patches_kept + other.patches_kept,
            most_keypoints=max(self.most_keypoints, other.most_keypoints),
            # Sorted, so that the same ones are named in whatever order chunks end.
            failures=tuple(sorted(self.failures + other.failures)[:MAX_FAILURES]),
        )


def patch_boxes(
    width: int, height: int, options: PoolBuildOptions, rng: np.random.Generator
) -> list[Box]:
    """Draw where the patches of an image lie.

    Args:
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        options: Number and side of the patches.
        rng: The image's own stream.

    Returns:
        Distinct squares, fewer than asked for where the image has fewer positions; none
        if the image is smaller than the pool's.
    """
    side = min(options.patch_size, width, height)
    if side < options.size:
        return []
    columns, rows = width - side + 1, height - side + 1
    count = min(options.crops, columns * rows)
    positions = rng.choice(columns * rows, count, replace=False).tolist()
    corners = [(position % columns, position // columns) for position in positions]
    return [(x, y, x + side, y + side) for x, y in corners]


def read_patches(
    stored: StoredPicture, options: PoolBuildOptions, rng: np.random.Generator
) -> list[Pixels]:
    """Cut a picture's patches at its own resolution.

    Args:
        stored: The picture: a file or its bytes.
        options: Number and side of the patches, and the range of deep pictures.
        rng: The image's own stream.

    Returns:
        u8[side,side,3] each; none if the image is smaller than the pool's.

    Raises:
        Exception: the file cannot be decoded; decoders raise what they like.
    """
    if isinstance(stored, np.ndarray):
        raise TypeError("pixels without a file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Beyond 89 megapixels one image would need more memory than all the rest.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _open(stored, options.value_range) as picture:
            boxes = patch_boxes(*picture.size, options, rng)
            return [np.asarray(picture.crop(box).convert("RGB")) for box in boxes]


def _open(stored: Path | bytes, value_range: str | None) -> Image.Image:
    kind = read_header(stored).kind
    if not kind.is_deep:
        return Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored)
    if value_range is None:
        raise ValueError(f"{kind.name}, not 8 bits: give --value-range LOW:HIGH")
    values = read_picture(stored)
    if not isinstance(values, np.ndarray):
        raise TypeError(f"{kind.name} without its numbers")
    if not np.isfinite(values).all():
        raise ValueError("some of its values are no numbers")
    pixels = map_to_8_bits(values, parse_value_range(value_range))
    # [H,W], or [H,W,C] without its opacity
    return Image.fromarray(pixels if pixels.ndim == 2 else pixels[:, :, :3])


def count_keypoints(patch: Pixels) -> int:
    """Count the SIFT key points that OpenCV's default detector finds.

    Args:
        patch: u8[side,side,3].
    """
    import cv2

    detector = cv2.SIFT_create()  # type: ignore[attr-defined]
    return len(detector.detect(cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY), None))


def shrink(patch: Pixels, size: int, channels: int) -> Pixels:
    """Shrink a patch, antialiased.

    Args:
        patch: u8[side,side,3].
        size: Side of the result, pixels.
        channels: 1 or 3.

    Returns:
        u8[channels,size,size].
    """
    picture = Image.fromarray(patch).convert("L" if channels == 1 else "RGB")
    small = picture.resize((size, size), Image.Resampling.BICUBIC)
    # [H,W] or [H,W,C] -> [C,H,W]
    return np.asarray(small).reshape(size, size, channels).transpose(2, 0, 1)


def cut_images(
    store: PictureStore, names: Sequence[str], options: PoolBuildOptions
) -> tuple[Pixels, CutReport]:
    """Cut, filter and shrink the patches of some images.

    Each image has a random stream named by its relative path, so its patches do not
    depend on which images are cut with it, or where.

    Args:
        store: Where the images lie.
        names: Their names.
        options: The settings of the cut.

    Returns:
        The n patches that passed, u8[n,C,size,size] in order of `names`, and what
        became of the images.
    """
    register_heif()
    passed: list[Pixels] = []
    total = CutReport()
    for name in names:
        rng = stream(options.seed, "pool", name)
        try:
            [stored] = store.fetch([name])
            patches = read_patches(stored, options, rng)
        except Exception as error:
            failure = f"{name} ({error})"
            total += CutReport(images=1, unreadable=1, failures=(failure,))
            continue
        small, most_keypoints = _filter(patches, options)
        passed += small
        total += CutReport(
            images=1,
            too_small=int(not patches),
            patches_tried=len(patches),
            patches_kept=len(small),
            most_keypoints=most_keypoints,
        )
    shape = (len(passed), options.channels, options.size, options.size)
    # An empty list has to be given its shape.
    return np.array(passed, np.uint8).reshape(shape), total


def _filter(
    patches: list[Pixels], options: PoolBuildOptions
) -> tuple[list[Pixels], int]:
    """Shrink the patches with enough key points; return the highest count as well."""
    if not options.min_keypoints:
        return [shrink(patch, options.size, options.channels) for patch in patches], 0
    counts = [count_keypoints(patch) for patch in patches]
    small = [
        shrink(patch, options.size, options.channels)
        for patch, count in zip(patches, counts, strict=True)
        if count > options.min_keypoints
    ]
    return small, max(counts, default=0)
