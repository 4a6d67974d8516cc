"""Opens stored pictures of any kind: their headers, and the values of deep ones."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from instahide_fl.data.sources.base import StoredPicture

SIXTEEN_BIT_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
COLOUR_MODES = ("RGB", "RGBA", "RGBX")  # that Pillow cuts to 8 bits where files have 16
SAMPLE_FORMAT = 339  # the TIFF tag that says whether integers have a sign
EXIF_ORIENTATION = 0x0112


class UnsupportedPixelsError(ValueError):
    """A sound file whose pixels are stored in a form that no decoder here reads."""


@dataclass(frozen=True)
class PictureKind:
    """What the pixels of a stored picture are.

    Attributes:
        name: What users call it: "8-bit colour", "16-bit grey", "float grey".
        is_coloured: Whether it has colours.
        depth: `8-bit` for at most 8 bits, or else the type of its numbers.
    """

    name: str
    is_coloured: bool
    depth: Literal["8-bit", "integer", "float"]

    @property
    def is_deep(self) -> bool:
        """Whether its values have to be mapped to 8 bits."""
        return self.depth != "8-bit"


@dataclass(frozen=True)
class PictureHeader:
    """What is known of a picture before its pixels are decoded.

    Attributes:
        kind: What its pixels are.
        width: The stored width in pixels.
        height: The stored height in pixels.
        has_frames: Whether the file holds further frames or pages.
    """

    kind: PictureKind
    width: int
    height: int
    has_frames: bool


def read_header(stored: StoredPicture) -> PictureHeader:
    """Read what a stored picture is, without its pixels.

    Args:
        stored: The picture.

    Raises:
        Exception: Whatever the decoders raise for damaged files.
    """
    if isinstance(stored, np.ndarray):
        height, width = stored.shape[:2]
        return PictureHeader(_array_kind(stored), width, height, has_frames=False)
    with _open(stored) as picture:
        # A telephone's MPO holds previews of the same picture.
        has_frames = picture.format != "MPO" and getattr(picture, "is_animated", False)
        return PictureHeader(_file_kind(picture), *picture.size, has_frames=has_frames)


def read_picture(stored: StoredPicture) -> Image.Image | np.ndarray[Any, Any]:
    """Read the pixels of a stored picture, turned as its EXIF data say.

    Args:
        stored: The picture.

    Returns:
        A picture of at most 8 bits a channel; or, of a deeper one, the numbers as they
        are stored, [H,W], [H,W,3], or [H,W,4] with opacity.

    Raises:
        Exception: Whatever the decoders raise for damaged files.
    """
    if isinstance(stored, np.ndarray):
        pixels = _without_axis(stored)
        if _array_kind(stored).is_deep:
            return pixels
        return Image.fromarray(np.ascontiguousarray(pixels))
    with _open(stored) as picture:
        if not _file_kind(picture).is_deep:
            return ImageOps.exif_transpose(picture)
        if picture.mode in COLOUR_MODES:
            orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
            return _turn(_read_colour(stored), orientation)
        has_sign = _has_sign(picture)
        values = np.asarray(ImageOps.exif_transpose(picture))
        return values if has_sign else values.view(np.uint32)


def _open(stored: Path | bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored)
    except UnidentifiedImageError:
        _refuse_unsupported_tiff(stored)
        raise


def _refuse_unsupported_tiff(stored: Path | bytes) -> None:
    """Ask the TIFF reader why, because Image.open hides the reasons of readers."""
    data = stored if isinstance(stored, bytes) else stored.read_bytes()
    try:
        TiffImagePlugin.TiffImageFile(io.BytesIO(data)).close()
    except SyntaxError as error:
        if str(error) == "unknown pixel mode":
            raise UnsupportedPixelsError(
                "Pillow reads no TIFF with channels of this number and type"
            ) from None


def _has_sign(picture: Image.Image) -> bool:
    """Say whether Pillow's numbers are right; it gives a sign to all of 32 bits."""
    if picture.format != "TIFF" or "32" not in _raw_mode(picture):
        return True
    tags: Mapping[int, Any] = getattr(picture, "tag_v2", {})
    return picture.mode != "I" or tags.get(SAMPLE_FORMAT, (1,)) != (1,)


def _without_axis(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # [H,W,1] -> [H,W]
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _array_kind(pixels: np.ndarray[Any, Any]) -> PictureKind:
    is_coloured = _without_axis(pixels).ndim == 3
    tint = "colour" if is_coloured else "grey"
    if pixels.dtype == np.uint8:
        return PictureKind(f"8-bit {tint}", is_coloured, "8-bit")
    if pixels.dtype == np.bool_:
        return PictureKind("1-bit grey", is_coloured=False, depth="8-bit")
    if pixels.dtype.kind == "f":
        return PictureKind(f"float {tint}", is_coloured, "float")
    if pixels.dtype.kind in "iu":
        bits = 8 * pixels.dtype.itemsize
        return PictureKind(f"{bits}-bit {tint}", is_coloured, "integer")
    raise TypeError(f"pixels of type {pixels.dtype}")


def _file_kind(picture: Image.Image) -> PictureKind:
    mode, raw_mode = picture.mode, _raw_mode(picture)
    if mode == "1":
        return PictureKind("1-bit grey", is_coloured=False, depth="8-bit")
    if mode in SIXTEEN_BIT_GREY:
        return PictureKind("16-bit grey", is_coloured=False, depth="integer")
    if mode == "I":
        bits = 32 if "32" in raw_mode else 16
        return PictureKind(f"{bits}-bit grey", is_coloured=False, depth="integer")
    if mode == "F":
        return PictureKind("float grey", is_coloured=False, depth="float")
    if mode in COLOUR_MODES and ";16" in raw_mode:
        if raw_mode.startswith("LA"):
            return PictureKind("16-bit grey", is_coloured=False, depth="integer")
        return PictureKind("16-bit colour", is_coloured=True, depth="integer")
    if mode in ("L", "LA", "La") or _has_grey_palette(picture):
        return PictureKind("8-bit grey", is_coloured=False, depth="8-bit")
    return PictureKind("8-bit colour", is_coloured=True, depth="8-bit")


def _raw_mode(picture: Image.Image) -> str:
    """Return how the file stores pixels, as Pillow names it: "RGB;16B"."""
    tile = next(iter(getattr(picture, "tile", ())), None)
    if tile is None:
        return ""
    arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    if tile[0] == "ppm" and isinstance(arguments[-1], int) and arguments[-1] > 255:
        return f"{arguments[0]};16"
    return str(arguments[0]) if arguments else ""


def _has_grey_palette(picture: Image.Image) -> bool:
    if picture.mode not in ("P", "PA"):
        return False
    # [r, g, b, r, g, b, ...] -> [n,3]
    colours = np.array(picture.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _read_colour(stored: Path | bytes) -> np.ndarray[Any, Any]:
    # Pillow would keep the upper 8 of 16 bits. Imported here: it takes a moment.
    import cv2

    data = stored if isinstance(stored, bytes) else stored.read_bytes()
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 3:
        raise UnsupportedPixelsError("OpenCV cannot read its 16 bits a channel")
    channels = [2, 1, 0, 3][: values.shape[2]]  # OpenCV's order is blue, green, red
    return np.asarray(values[..., channels])


def _turn(values: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """Turn [H,W,C] as an EXIF orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values
