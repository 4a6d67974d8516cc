"""The embedded pool `photos`: patches of photographs that dependencies ship.

It needs no network, but it comes from a dozen photographs: an attacker who has the same
packages has the pool. Research on real privacy should build a large pool of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from PIL import Image

from instahide_fl.data.pool_patches import MIN_KEYPOINTS, shrink
from instahide_fl.errors import PoolError
from instahide_fl.files import cache_folder
from instahide_fl.rng import stream

Photo: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

NUM_PATCHES = 10_000
PATCH_SIDES = (64, 256)  # pixels, before shrinking
SEED = 2020
_SKIMAGE = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "rocket",
)
_SKLEARN = ("china.jpg", "flower.jpg")
SOURCE = f"photos: {len(_SKIMAGE)} of scikit-image, {len(_SKLEARN)} of scikit-learn"


def photos_folder(image_size: int, channels: int) -> Path:
    """Return where the cache keeps the pool of this shape, built or not.

    Args:
        image_size: side in pixels that patches are shrunk to.
        channels: 1 (grey) or 3 (colour).

    Raises:
        PoolError: the shape is not possible.
        OutputError: the cache folder cannot be written.
    """
    if channels not in (1, 3) or not 1 <= image_size <= PATCH_SIDES[0]:
        raise PoolError(
            f'pool.source = "photos" has grey or colour images of at most '
            f"{PATCH_SIDES[0]} pixels, the data need {channels} channels of "
            f"{image_size}: build a pool of your own"
        )
    # Another version of a package may ship or decode other pixels.
    packages = ("scikit-image", "scikit-learn", "opencv-python-headless", "pillow")
    identity = repr([NUM_PATCHES, PATCH_SIDES, SEED, *map(version, packages)])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    shape = f"{image_size}x{image_size}x{channels}"
    return cache_folder("pools", f"photos-{shape}-{digest}")


def load_photos() -> list[Photo]:
    """Return the photographs, u8[H,W,3] each."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    pictures = [getattr(skimage.data, name)() for name in _SKIMAGE]
    pictures += [load_sample_image(name) for name in _SKLEARN]
    return [np.asarray(Image.fromarray(p).convert("RGB")) for p in pictures]


def cut_patches(
    photos: list[Photo],
    image_size: int,
    channels: int,
    count: int = NUM_PATCHES,
) -> Photo:
    """Cut random square patches with enough detail and shrink them.

    The filter counts SIFT key points on the patch *before* shrinking: patches of 32
    pixels hardly ever have 40 of them.

    Args:
        photos: u8[H,W,3] each.
        image_size: side in pixels of the result.
        channels: 1 or 3.
        count: patches to cut.

    Returns:
        u8[count,channels,image_size,image_size].
    """
    rng = stream(SEED, "photos")
    sources = _detailed(photos)
    cut = np.empty((count, channels, image_size, image_size), np.uint8)
    for row, patch in zip(range(count), _patches(sources, rng), strict=False):
        cut[row] = shrink(patch, image_size, channels)
    return cut


def _detailed(photos: list[Photo]) -> list[tuple[Photo, np.ndarray[Any, Any]]]:
    """Pair each photograph with the positions (x, y) of its SIFT key points.

    Detecting once on the whole photograph and counting what falls into a patch is
    several hundred times cheaper than detecting on each of thousands of patches.
    """
    detector = cv2.SIFT_create()  # type: ignore[attr-defined]
    paired = []
    for photo in photos:
        keypoints = detector.detect(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), None)
        paired.append((photo, np.array([point.pt for point in keypoints])))
    return paired


def _patches(
    sources: list[tuple[Photo, np.ndarray[Any, Any]]], rng: np.random.Generator
) -> Iterator[Photo]:
    low, high = np.log(PATCH_SIDES)
    while True:
        photo, points = sources[rng.integers(len(sources))]
        height, width = photo.shape[:2]
        side = min(round(np.exp(rng.uniform(low, high))), height, width)
        top = rng.integers(height - side + 1)
        left = rng.integers(width - side + 1)
        inside = (points >= (left, top)) & (points < (left + side, top + side))
        if inside.all(axis=1).sum() > MIN_KEYPOINTS:
            yield photo[top : top + side, left : left + side]
