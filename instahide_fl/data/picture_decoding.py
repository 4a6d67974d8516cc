"""Decodes stored pictures of any kind to uint8 pixels of one shape."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageOps
from rich.progress import track

from instahide_fl.config import DataConfig
from instahide_fl.data.data_report import MAX_EXAMPLES, PixelFindings
from instahide_fl.data.sources.base import (
    BLOCK_IMAGES,
    DatasetPart,
    ImageBlock,
    ImageBlocks,
    StoredPicture,
    StoredPictures,
)
from instahide_fl.errors import DataError

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class PixelFormat:
    """What all images of a data set are decoded to, whatever their part.

    Attributes:
        channels: 1 (grey) or 3 (colour).
        image_size: Side in pixels to resize to; 0 keeps the images' own size.
    """

    channels: int
    image_size: int


def survey_pictures(
    parts: Sequence[DatasetPart], config: DataConfig
) -> tuple[PixelFormat, PixelFindings]:
    """Look at the pictures of all parts and decide what they are decoded to.

    Args:
        parts: All parts of the data set.
        config: The table `[data]`.

    Returns:
        The format, and what was seen.

    Raises:
        DataError: The pictures and the settings allow no certain reading.
    """
    coloured = any(_is_coloured_part(part.pictures) for part in parts)
    channels = 3 if coloured else 1
    findings = PixelFindings(channels, "of the pictures", {})
    return PixelFormat(channels, config.image_size), findings


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
    elif pixel_format.image_size:
        for block in pictures.blocks():
            yield np.stack([_resize_pixels(pixels, pixel_format) for pixels in block])
    else:
        yield from pictures.blocks()


def _resize_pixels(pixels: ImageBlock, pixel_format: PixelFormat) -> ImageBlock:
    """Resize u8[C,H,W]."""
    # [1,H,W] -> [H,W], or [3,H,W] -> [H,W,3], as Pillow takes them
    array = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(array))
    return _pixels(crop_and_resize(picture, pixel_format.image_size))


def _decode_pictures(
    pictures: StoredPictures, pixel_format: PixelFormat
) -> Iterator[ImageBlock]:
    attempt = partial(_attempt, pixel_format)
    unreadable: list[tuple[int, Exception]] = []
    shape: tuple[int, ...] | None = None
    starts = range(0, pictures.count, BLOCK_IMAGES)
    # Pillow lets other threads run while it decodes and resizes.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in track(
            starts, f"decoding {pictures.title}", transient=True, update_period=0.5
        ):
            fetched = pictures.fetch(start, min(start + BLOCK_IMAGES, pictures.count))
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


def open_picture(stored: StoredPicture) -> Image.Image:
    """Open a stored picture; its pixels are decoded when they are used.

    Args:
        stored: The picture.

    Raises:
        Exception: Whatever the decoders raise for damaged files.
    """
    if isinstance(stored, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(stored))
    return Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored)


def _attempt(
    pixel_format: PixelFormat, stored: StoredPicture
) -> ImageBlock | Exception:
    """Decode one picture to u8[C,H,W], or return the error."""
    try:
        with open_picture(stored) as opened:
            turned = ImageOps.exif_transpose(opened)
        picture = convert_to_8_bits(turned, grey=pixel_format.channels == 1)
        if pixel_format.image_size:
            picture = crop_and_resize(picture, pixel_format.image_size)
        return _pixels(picture)
    except Exception as error:  # decoders of damaged files raise almost anything
        return error


def _pixels(picture: Image.Image) -> ImageBlock:
    """Return u8[C,H,W]."""
    pixels = np.asarray(picture)
    # [H,W] -> [1,H,W], or [H,W,3] -> [3,H,W]
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _is_coloured_part(pictures: StoredPictures | ImageBlocks) -> bool:
    if isinstance(pictures, ImageBlocks):
        return pictures.channels == 3
    for start in range(0, pictures.count, BLOCK_IMAGES):
        stop = min(start + BLOCK_IMAGES, pictures.count)
        if any(map(_is_coloured, pictures.fetch(start, stop))):
            return True
    return False


def _is_coloured(stored: StoredPicture) -> bool:
    try:
        with open_picture(stored) as picture:  # reads the header only
            return picture.mode not in GREY_MODES
    except (OSError, ValueError, SyntaxError):
        return False  # reported with all other damaged files when pixels are decoded


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
    pictures: StoredPictures, failed: Sequence[tuple[int, Exception]]
) -> DataError:
    named = ", ".join(pictures.name(number) for number, _ in failed[:MAX_EXAMPLES])
    further = ", ..." if len(failed) > MAX_EXAMPLES else ""
    reason = str(failed[0][1]) or type(failed[0][1]).__name__
    return DataError(
        f"data.dataset: {len(failed)} of {pictures.count} images of {pictures.title} "
        f"cannot be read: {named}{further} ({reason.splitlines()[0]}): repair or "
        f"remove them"
    )
