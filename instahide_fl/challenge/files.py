"""The published files of a challenge, and decryptions of it.

    encryption.npy   f32[E,H,W,C], encodings, normalised as settings.toml says
    label.npy        f32[E,K], soft labels: the private coefficients, by class
    settings.toml    k, p, coefficient law, normalisation, pool
    decryption.npy   f32[E,H,W,C] in [0, 1], what an attack made of each encoding

The original challenge has no settings.toml; `ChallengeSettings.as_published` stands in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.challenge.settings import ChallengeSettings, read_settings_file
from instahide_fl.data.npy_files import NPY_READ_ERRORS
from instahide_fl.errors import DataError
from instahide_fl.files import atomic_file, write_text

ENCRYPTION = "encryption.npy"
LABEL = "label.npy"
SETTINGS = "settings.toml"
DECRYPTION = "decryption.npy"

MAX_ROUNDING = 1e-3
"""How far a row of soft labels may exceed 1, and a decryption may leave [0, 1]."""

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class PublishedChallenge:
    """All that is published of a challenge.

    Attributes:
        encodings: f32[E,C,H,W], normalised.
        soft_targets: f32[E,K].
        settings: The public settings.
        assumed: Whether there was no settings file, so that those of the original
            challenge were assumed.
    """

    encodings: Tensor
    soft_targets: Tensor
    settings: ChallengeSettings
    assumed: bool = False


def write_published(folder: Path, published: PublishedChallenge) -> None:
    """Write the three published files.

    Args:
        folder: The folder to write to.
        published: What may be known.

    Raises:
        OutputError: a file cannot be written.
    """
    save_array(folder / ENCRYPTION, _channels_last(published.encodings))
    save_array(folder / LABEL, published.soft_targets.numpy())
    write_text(folder / SETTINGS, published.settings.to_toml())


def read_published(folder: Path) -> PublishedChallenge:
    """Read and check the published files.

    `encryption.npy` may be float16, float32 or float64, taken as normalised values, or
    uint8, taken as a picture: v / 255 is in units of [0, 1] and is normalised as the
    settings say, so that 127.5 is zero for pixels mapped to [-1, 1].

    Args:
        folder: The challenge's folder.

    Raises:
        DataError: a file is missing, damaged or does not fit the others.
    """
    encodings = _checked_encodings(folder / ENCRYPTION)
    count, height, width, channels = encodings.shape
    soft_targets = _checked_labels(folder / LABEL, count)
    assumed = not (folder / SETTINGS).is_file()
    shape = (channels, height, width)
    settings = (
        ChallengeSettings.as_published(shape)
        if assumed
        else read_settings_file(folder / SETTINGS)
    )
    if settings.image_shape != shape:
        raise DataError(
            f"{folder / SETTINGS} says images of shape {settings.image_shape} "
            f"(channels, height, width), {ENCRYPTION} has {shape}"
        )
    images = _channels_first(encodings)
    if encodings.dtype == np.uint8:
        images = settings.statistics.normalise(images)
    return PublishedChallenge(
        images.float(), torch.from_numpy(soft_targets).float(), settings, assumed
    )


def write_decryption(path: Path, images: Tensor) -> None:
    """Write a decryption.

    Args:
        path: The .npy file.
        images: f32[E,C,H,W] in [0, 1].

    Raises:
        OutputError: it cannot be written.
    """
    save_array(path, _channels_last(images))


def read_decryption(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a decryption: floats in [0, 1], or uint8 in 0..255.

    Args:
        path: The .npy file.
        shape: The shape of the encodings: E, C, H, W.

    Returns:
        f32[E,C,H,W] in [0, 1].

    Raises:
        DataError: it is missing, damaged, or of another shape or range.
    """
    array = _load(path)
    count, channels, height, width = shape
    expected = (count, height, width, channels)
    if array.shape != expected:
        raise DataError(
            f"{path} must have one image for each encoding, shape {expected} "
            f"(encodings, height, width, channels), got {array.shape}"
        )
    if array.dtype == np.uint8:
        return _channels_first(array).float() / 255
    _check_floats(path, array)
    if array.min() < -MAX_ROUNDING or array.max() > 1 + MAX_ROUNDING:
        raise DataError(
            f"{path} must hold pixels in [0, 1] (or uint8 in 0..255), got "
            f"{array.min():.4g}..{array.max():.4g}: undo the normalisation and clip"
        )
    return _channels_first(array).float().clamp(0, 1)


def save_array(path: Path, array: Array) -> None:
    """Write an .npy file atomically.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _checked_encodings(path: Path) -> Array:
    array = _load(path)
    if array.ndim != 4 or array.shape[3] not in (1, 3) or not array.size:
        raise DataError(
            f"{path} must be [encodings, height, width, channels] with 1 or 3 channels "
            f"and at least one encoding, got shape {array.shape}"
        )
    if min(array.shape[1:3]) < 3:
        raise DataError(f"{path}: images need a side of 3 pixels, got {array.shape}")
    if array.dtype != np.uint8:
        _check_floats(path, array)
    return array


def _checked_labels(path: Path, count: int) -> Array:
    array = _load(path)
    if array.ndim != 2 or len(array) != count or array.shape[1] < 2:
        raise DataError(
            f"{path} must be [encodings, classes] with a row for each of the {count} "
            f"encodings and at least 2 classes, got shape {array.shape}"
        )
    _check_floats(path, array)
    sums = array.sum(axis=1)
    bad = (array.min(axis=1) < 0) | (sums <= 0) | (sums > 1 + MAX_ROUNDING)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"{path}: rows must be soft labels, not negative and of a sum in (0, 1], "
            f"the weight of the private images; row {row} has values "
            f"{array[row].min():.4g}..{array[row].max():.4g} and sum {sums[row]:.4g}"
        )
    return array


def _load(path: Path) -> Array:
    try:
        array: object = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except NPY_READ_ERRORS as error:
        # Images of several sizes can only be stored as Python objects, pickled.
        raise DataError(
            f"{path} is not an array of numbers of one shape (.npy): {error}"
        ) from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} holds several arrays (.npz), one is expected (.npy)")
    return array


def _check_floats(path: Path, array: Array) -> None:
    if array.dtype.kind != "f":
        raise DataError(
            f"{path} must hold float16, float32 or float64 (images: or uint8), got "
            f"{array.dtype}"
        )
    if not np.isfinite(array).all():
        raise DataError(f"{path} holds values that are not finite (NaN or infinity)")


def _channels_last(images: Tensor) -> Array:
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())


def _channels_first(array: Array) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.ascontiguousarray(native.transpose(0, 3, 1, 2)))
