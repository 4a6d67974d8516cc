"""From pictures as they are stored to uint8 pixels of one shape."""

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
NAMED = 3  # unreadable pictures that an error names
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class UndecodedPictures:
    """Pictures that are opened one by one.

    Attributes:
        title: of the data set, for messages.
        count: how many there are.
        fetch: returns what `open` takes, for the pictures start..stop-1.
        open: decodes one; called from several threads.
        name: says which picture a number is, for messages.
        grey: whether the pixels get one channel instead of three.
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
    """Decode pictures with several threads, in order.

    Args:
        pictures: what to decode.
        image_size: side in pixels to resize to; 0 keeps their own size.

    Raises:
        DataError: a picture cannot be read (after all were tried, so that the count is
            known), or they are not square and of one size.
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
            failed = [
                (start + row, one)
                for row, one in enumerate(outcomes)
                if isinstance(one, Exception)
            ]
            unreadable += failed
            decoded = [one for one in outcomes if not isinstance(one, Exception)]
            for pixels in decoded:
                shape = _same_shape(pictures.title, shape, pixels)
            if not unreadable:
                yield np.stack(decoded)
    if unreadable:
        raise _unreadable(pictures, unreadable)


def part_from_arrays(
    title: str,
    images: ImageBlock,
    targets: np.ndarray[Any, Any],
    image_size: int,
) -> DatasetPart:
    """Make a part of images that are in memory already.

    Args:
        title: for messages.
        images: u8[N,C,H,W], C being 1 or 3.
        targets: N classes.
        image_size: side in pixels to resize to; 0 keeps their own size.
    """

    def as_they_are() -> Iterator[ImageBlock]:
        for start in range(0, len(images), BLOCK_PICTURES):
            yield images[start : start + BLOCK_PICTURES]

    grey = images.shape[1] == 1
    shown = images[:, 0] if grey else images.transpose(0, 2, 3, 1)
    pictures = UndecodedPictures(
        title,
        len(images),
        lambda start, stop: shown[start:stop],  # type: ignore[arg-type,return-value]
        lambda pixels: Image.fromarray(np.ascontiguousarray(pixels)),
        lambda number: f"image {number}",
        grey,
    )
    resized = partial(decode_pictures, pictures, image_size)
    return DatasetPart(targets.astype(np.int64), resized if image_size else as_they_are)


def convert_to_8_bits(picture: Image.Image, *, grey: bool) -> Image.Image:
    """Return a picture with 8 bits a channel, in mode L or RGB.

    What is transparent is laid on white: the colour stored there is arbitrary. Of 16
    bits the upper 8 stay.
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
    """Shrink or enlarge to size x size, cutting the longer side to its middle."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _attempt(
    pictures: UndecodedPictures, image_size: int, fetched: Any
) -> ImageBlock | Exception:
    """Return pixels u8[C,H,W], or why there are none."""
    try:
        picture = convert_to_8_bits(pictures.open(fetched), grey=pictures.grey)
        pixels = np.asarray(
            crop_and_resize(picture, image_size) if image_size else picture
        )
    except Exception as error:  # decoders of damaged files raise almost anything
        return error
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
    named = ", ".join(pictures.name(number) for number, _ in failed[:NAMED])
    further = ", ..." if len(failed) > NAMED else ""
    reason = str(failed[0][1]) or type(failed[0][1]).__name__
    return DataError(
        f"data.dataset: {len(failed)} of {pictures.count} images of {pictures.title} "
        f"cannot be read: {named}{further} ({reason.splitlines()[0]}): repair or "
        f"remove them"
    )
