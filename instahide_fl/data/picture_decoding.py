"""Decodes stored pictures of any kind to uint8 pixels of one shape."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from instahide_fl.data.dataset_source import DatasetPart, ImageBlock
from instahide_fl.errors import DataError

BLOCK_PICTURES = 128  # pictures decoded before they are written
MAX_NAMED = 3  # unreadable pictures that an error names
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class UndecodedPictures:
    """Pictures of a part of a data set, and how to decode them.

    Attributes:
        title: Name of the part, for messages.
        count: Number of pictures.
        fetch: a function of start and stop that returns the stored pictures start,
            ..., stop-1, each as `open` takes it.
        open: a function that decodes one stored picture; called from several threads.
        name: a function that names a picture by its number, for messages.
        grey: Whether the pixels have one channel instead of three.
    """

    title: str
    count: int
    fetch: Callable[[int, int], Sequence[Any]]
    open: Callable[[Any], Image.Image]
    name: Callable[[int], str]
    grey: bool


def decode_pictures(
    pictures: UndecodedPictures, image_size: int
) -> Iterator[ImageBlock]:
    """Decode pictures with several threads, in order, a block at a time.

    Args:
        pictures: The pictures to decode.
        image_size: Side in pixels to resize to; 0 keeps their own size.

    Raises:
        DataError: some pictures cannot be read (raised after all were tried, so that it
            counts them), or they are not square and of one size.
    """
    attempt = partial(_attempt, pictures, image_size)
    unreadable: list[tuple[int, Exception]] = []
    shape: tuple[int, ...] | None = None
    starts = range(0, pictures.count, BLOCK_PICTURES)
    # Pillow lets other threads run while it decodes and resizes.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in track(
            starts, f"decoding {pictures.title}", transient=True, update_period=0.5
        ):
            fetched = pictures.fetch(start, min(start + BLOCK_PICTURES, pictures.count))
            outcomes = list(threads.map(attempt, fetched))
            decoded: list[ImageBlock] = []
            for number, outcome in enumerate(outcomes, start):
                if isinstance(outcome, Exception):
                    unreadable.append((number, outcome))
                else:
                    shape = _same_shape(pictures.title, shape, outcome)
                    decoded.append(outcome)
            if not unreadable:
                yield np.stack(decoded)  # [n,C,H,W]
    if unreadable:
        raise _unreadable(pictures, unreadable)


def part_from_arrays(
    title: str,
    images: ImageBlock,
    targets: np.ndarray[Any, Any],
    image_size: int,
) -> DatasetPart:
    """Make a part of a data set from images in memory.

    Args:
        title: Name of the part, for messages.
        images: u8[N,C,H,W], where C is 1 or 3.
        targets: [N], classes.
        image_size: Side in pixels to resize to; 0 keeps their own size.
    """

    def unchanged() -> Iterator[ImageBlock]:
        for start in range(0, len(images), BLOCK_PICTURES):
            yield images[start : start + BLOCK_PICTURES]

    grey = images.shape[1] == 1
    # As Pillow takes them: [N,1,H,W] -> [N,H,W], or [N,3,H,W] -> [N,H,W,3].
    arrays = images[:, 0] if grey else images.transpose(0, 2, 3, 1)
    pictures = UndecodedPictures(
        title=title,
        count=len(images),
        fetch=lambda start, stop: list(arrays[start:stop]),
        open=lambda pixels: Image.fromarray(np.ascontiguousarray(pixels)),
        name=lambda number: f"image {number}",
        grey=grey,
    )
    resized = partial(decode_pictures, pictures, image_size)
    return DatasetPart(targets.astype(np.int64), resized if image_size else unchanged)


def convert_to_8_bits(picture: Image.Image, *, grey: bool) -> Image.Image:
    """Return a picture with 8 bits a channel, in mode L or RGB.

    Transparent pixels are laid on white, because the colour stored there is arbitrary.
    Of 16 bits a channel, the upper 8 are kept.
    """
    if picture.mode in SIXTEEN_BITS:
        # Pillow would clip at 255 instead.
        wide = np.asarray(picture).astype(np.int64).clip(0, 2**16 - 1)
        picture = Image.fromarray((wide >> 8).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("L" if grey else "RGB")


def crop_and_resize(picture: Image.Image, size: int) -> Image.Image:
    """Cut a picture to its middle square, and shrink or enlarge it to size x size."""
    side = min(picture.size)
    x, y = (picture.width - side) // 2, (picture.height - side) // 2
    box = (x, y, x + side, y + side)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _attempt(
    pictures: UndecodedPictures, image_size: int, fetched: Any
) -> ImageBlock | Exception:
    """Decode one picture to u8[C,H,W], or return the error."""
    try:
        picture = convert_to_8_bits(pictures.open(fetched), grey=pictures.grey)
        pixels = np.asarray(
            crop_and_resize(picture, image_size) if image_size else picture
        )
    except Exception as error:  # decoders of damaged files raise almost anything
        return error
    # [H,W] -> [1,H,W], or [H,W,3] -> [3,H,W]
    return pixels[None] if pictures.grey else pixels.transpose(2, 0, 1)


def _same_shape(
    title: str, shape: tuple[int, ...] | None, pixels: ImageBlock
) -> tuple[int, ...]:
    _, height, width = pixels.shape
    if shape not in (None, pixels.shape) or height != width:
        raise DataError(
            f"data.dataset: {title} holds images that are not square or not all of one "
            f"size ({width}x{height}): set data.image-size"
        )
    return tuple(pixels.shape)


def _unreadable(
    pictures: UndecodedPictures, failed: Sequence[tuple[int, Exception]]
) -> DataError:
    named = ", ".join(pictures.name(number) for number, _ in failed[:MAX_NAMED])
    further = ", ..." if len(failed) > MAX_NAMED else ""
    reason = str(failed[0][1]) or type(failed[0][1]).__name__
    return DataError(
        f"data.dataset: {len(failed)} of {pictures.count} images of {pictures.title} "
        f"cannot be read: {named}{further} ({reason.splitlines()[0]}): repair or "
        f"remove them"
    )
