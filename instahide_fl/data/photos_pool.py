"""The embedded pool `photos`: patches of photographs that dependencies ship.

It needs no network, but it comes from a dozen photographs, and an attacker who has the
same packages has the pool. Research on real privacy should build a large pool.
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
SEED = 2020  # of the positions of patches: everybody gets the same pool
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
    """Return the folder in the cache for the pool of this shape, built or not.

    Args:
        image_size: Side in pixels that patches are shrunk to.
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
    return [np.asarray(Image.fromarray(picture).convert("RGB")) for picture in pictures]


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
        photos: Photographs, u8[H,W,3] each.
        image_size: Side in pixels of the result.
        channels: 1 (grey) or 3 (colour).
        count: Number of patches to cut.

    Returns:
        u8[count,channels,image_size,image_size].
    """
    rng = stream(SEED, "photos")
    photos_with_keypoints = _with_keypoints(photos)
    pool = np.empty((count, channels, image_size, image_size), np.uint8)
    patches = _detailed_patches(photos_with_keypoints, rng)
    for row, patch in zip(range(count), patches, strict=False):
        pool[row] = shrink(patch, image_size, channels)
    return pool


def _with_keypoints(photos: list[Photo]) -> list[tuple[Photo, np.ndarray[Any, Any]]]:
    """Pair each photograph with the positions (x, y) of its SIFT key points, f64[n,2].

    Detecting once on the whole photograph and counting the points in each patch is
    several hundred times cheaper than detecting on each of thousands of patches.
    """
    detector = cv2.SIFT_create()  # type: ignore[attr-defined]
    paired = []
    for photo in photos:
        keypoints = detector.detect(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), None)
        paired.append((photo, np.array([point.pt for point in keypoints])))
    return paired


def _detailed_patches(
    photos_with_keypoints: list[tuple[Photo, np.ndarray[Any, Any]]],
    rng: np.random.Generator,
) -> Iterator[Photo]:
    """Yield random squares of random photographs that have enough key points."""
    low, high = np.log(PATCH_SIDES)
    while True:
        photo, points = photos_with_keypoints[rng.integers(len(photos_with_keypoints))]
        height, width = photo.shape[:2]
        side = min(round(np.exp(rng.uniform(low, high))), height, width)
        y = rng.integers(height - side + 1)
        x = rng.integers(width - side + 1)
        # bool[n,2]: whether a point lies inside the square in x, and in y
        inside = (points >= (x, y)) & (points < (x + side, y + side))
        if inside.all(axis=1).sum() > MIN_KEYPOINTS:
            yield photo[y : y + side, x : x + side]
