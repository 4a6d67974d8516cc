"""Decodes stored pictures of any kind to uint8 pixels of one shape."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from instahide_fl.data.data_report import examples
from instahide_fl.data.sources.base import (
    BLOCK_IMAGES,
    DatasetPart,
    ImageBlock,
    StoredPicture,
    StoredPictures,
)
from instahide_fl.data.stored_pictures import UnsupportedPixelsError, read_picture
from instahide_fl.data.value_range import EIGHT_BITS, map_to_8_bits
from instahide_fl.errors import DataError
from instahide_fl.terminal import show_steps

Result = TypeVar("Result")


@dataclass(frozen=True)
class PixelFormat:
    """What all images of a data set are decoded to, whatever their part.

    Attributes:
        channels: 1 (grey) or 3 (colour).
        image_size: Side in pixels to resize to; 0 keeps the images' own size.
        value_range: The stored values (low, high) that become 0 and 255.
        maps_8_bits: Whether the range is for 8-bit pictures too; else it is for deeper
            ones alone.
    """

    channels: int
    image_size: int
    value_range: tuple[float, float] = EIGHT_BITS
    maps_8_bits: bool = False


def map_pictures(
    pictures: StoredPictures,
    function: Callable[[StoredPicture], Result],
    activity: str,
    is_selected: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
) -> Iterator[tuple[int, Result | Exception]]:
    """Apply a function to all pictures of a part, in threads, a block at a time.

    Args:
        pictures: The pictures.
        function: A function of a stored picture.
        activity: What the progress bar says: "decoding".
        is_selected: bool[N], the pictures to take; all if None.

    Yields:
        The number of each picture, in order, with the result or the error.
    """

    def attempt(stored: StoredPicture) -> Result | Exception:
        try:
            return function(stored)
        except Exception as error:  # decoders of damaged files raise almost anything
            return error

    starts = range(0, pictures.count, BLOCK_IMAGES)
    # Pillow lets other threads run while it decodes and resizes.
    with ThreadPoolExecutor(os.cpu_count()) as threads, warnings.catch_warnings():
        # Large pictures are read; of those that are too large Pillow raises an error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for start in show_steps(starts, f"{activity} {pictures.title}"):
            stop = min(start + BLOCK_IMAGES, pictures.count)
            selected = np.ones(stop - start, dtype=bool)
            if is_selected is not None:
                selected = is_selected[start:stop]
            if not selected.any():
                continue
            fetched = pictures.fetch(start, stop)
            numbers = np.flatnonzero(selected).tolist()
            outcomes = threads.map(attempt, [fetched[number] for number in numbers])
            for number, outcome in zip(numbers, outcomes, strict=True):
                yield start + number, outcome


def decode_part(part: DatasetPart, pixel_format: PixelFormat) -> Iterator[ImageBlock]:
    """Decode the images of a part in order, a block at a time.

    Args:
        part: The part.
        pixel_format: What the images are decoded to.

    Yields:
        Blocks u8[n,C,H,W].

    Raises:
        DataError: Some pictures cannot be read (raised after all were tried, so that it
            counts them), or they are not square and of one size.
    """
    pictures = part.pictures
    if isinstance(pictures, StoredPictures):
        yield from _decode_pictures(pictures, pixel_format)
    else:
        for block in pictures.blocks():
            yield _adapt_block(block, pixel_format)


def _adapt_block(block: ImageBlock, pixel_format: PixelFormat) -> ImageBlock:
    """Map, recolour and resize decoded images, u8[n,C,H,W]."""
    if pixel_format.maps_8_bits:
        block = map_to_8_bits(block, pixel_format.value_range)
    if not pixel_format.image_size and block.shape[1] == pixel_format.channels:
        return block
    return np.stack([_adapt_pixels(pixels, pixel_format) for pixels in block])


def _adapt_pixels(pixels: ImageBlock, pixel_format: PixelFormat) -> ImageBlock:
    """Recolour and resize u8[C,H,W]."""
    # [1,H,W] -> [H,W], or [3,H,W] -> [H,W,3], as Pillow takes them
    array = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(array))
    return _finish(picture, pixel_format)


def _decode_pictures(
    pictures: StoredPictures, pixel_format: PixelFormat
) -> Iterator[ImageBlock]:
    decode = partial(decode_picture, pixel_format=pixel_format)
    unreadable: list[tuple[int, Exception]] = []
    shape: tuple[int, ...] | None = None
    decoded: list[ImageBlock] = []
    for number, outcome in map_pictures(pictures, decode, "decoding"):
        if isinstance(outcome, Exception):
            unreadable.append((number, outcome))
            decoded = []
            continue
        shape = _same_shape(pictures.title, shape, outcome)
        if not unreadable:
            decoded.append(outcome)
        if len(decoded) == BLOCK_IMAGES:
            yield np.stack(decoded)  # [n,C,H,W]
            decoded = []
    if unreadable:
        raise _unreadable(pictures, unreadable)
    if decoded:
        yield np.stack(decoded)


def decode_picture(stored: StoredPicture, pixel_format: PixelFormat) -> ImageBlock:
    """Decode one picture.

    Args:
        stored: The picture.
        pixel_format: What it is decoded to.

    Returns:
        u8[C,H,W].

    Raises:
        Exception: Whatever the decoders raise for damaged files.
    """
    picture = read_picture(stored)
    if isinstance(picture, np.ndarray):
        picture = _picture_of_values(picture, pixel_format.value_range)
    elif pixel_format.maps_8_bits:
        levels = map_to_8_bits(np.arange(256), pixel_format.value_range).tolist()
        picture = convert_to_8_bits(picture, grey=pixel_format.channels == 1)
        picture = picture.point(levels * len(picture.getbands()))
    return _finish(picture, pixel_format)


def _picture_of_values(
    values: np.ndarray[Any, Any], value_range: tuple[float, float]
) -> Image.Image:
    """Return a picture of 8 bits a channel from [H,W], [H,W,3] or [H,W,4]."""
    pixels = map_to_8_bits(values, value_range)
    if values.ndim == 3 and values.shape[2] == 4:
        # Opacity has the range of its type, whatever the range of the colours.
        is_integer = values.dtype.kind in "iu"
        opaque = float(np.iinfo(values.dtype).max) if is_integer else 1.0
        pixels[..., 3] = map_to_8_bits(values[..., 3], (0.0, opaque))
    return Image.fromarray(pixels)


def _finish(picture: Image.Image, pixel_format: PixelFormat) -> ImageBlock:
    picture = convert_to_8_bits(picture, grey=pixel_format.channels == 1)
    if pixel_format.image_size:
        picture = crop_and_resize(picture, pixel_format.image_size)
    return _pixels(picture)


def convert_to_8_bits(picture: Image.Image, *, grey: bool) -> Image.Image:
    """Return a picture of at most 8 bits a channel in mode L or RGB.

    Transparent pixels are laid on white, because the colour stored there is arbitrary.

    Args:
        picture: A picture of any mode that Pillow converts.
        grey: Whether to return mode L.
    """
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


def _pixels(picture: Image.Image) -> ImageBlock:
    """Return u8[C,H,W]."""
    pixels = np.asarray(picture)
    # [H,W] -> [1,H,W], or [H,W,3] -> [3,H,W]
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _same_shape(
    title: str, shape: tuple[int, ...] | None, pixels: ImageBlock
) -> tuple[int, ...]:
    _, height, width = pixels.shape
    if shape not in (None, pixels.shape) or height != width:
        raise DataError(
            f"data.dataset: {title} holds images that are not square or not all of one "
            f"size ({width}x{height}): set data.image-size to a side in pixels, for "
            f"instance 32"
        )
    return tuple(pixels.shape)


def _unreadable(
    pictures: StoredPictures, failed: Sequence[tuple[int, Exception]]
) -> DataError:
    names = [pictures.name(number) for number, _ in failed]
    reason = str(failed[0][1]) or type(failed[0][1]).__name__
    is_sound = isinstance(failed[0][1], UnsupportedPixelsError)
    remedy = (
        "convert them to 8- or 16-bit grey or RGB"
        if is_sound
        else "repair or remove them"
    )
    return DataError(
        f"data.dataset: {len(failed)} of {pictures.count} images of {pictures.title} "
        f"cannot be read: {examples(names)} ({reason.splitlines()[0]}): {remedy}"
    )
