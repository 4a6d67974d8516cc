"""Finds images whose pixels are equal, by a hash of their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from instahide_fl.data.sources.base import ImageBlock

HASH_BYTES = 16  # too long for two of a billion different images to share a hash

ImageHashes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"
"""The hashes of some images, u64[N,2]."""


def hash_images(images: ImageBlock) -> ImageHashes:
    """Return a hash of each image's pixels.

    Args:
        images: Images of one shape, u8[n,C,H,W].

    Returns:
        u64[n,2].
    """
    digests = b"".join(
        hashlib.blake2b(
            np.ascontiguousarray(pixels).data, digest_size=HASH_BYTES
        ).digest()
        for pixels in images
    )
    # bytes -> [n,2]: two numbers sort faster than 16 bytes
    return np.frombuffer(digests, np.uint64).reshape(len(images), -1)


def find_first_copies(hashes: ImageHashes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return for each image the first image with the same pixels.

    Args:
        hashes: The hashes of the images, u64[N,2].

    Returns:
        i64[N], row numbers; an image that equals no earlier one has its own.
    """
    order = np.lexsort(hashes.T)  # stable: copies stay in their order
    ordered = hashes[order]
    starts_group = np.ones(len(hashes), dtype=bool)
    starts_group[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    group = np.cumsum(starts_group) - 1
    first_copies = np.empty(len(hashes), dtype=np.int64)
    first_copies[order] = order[starts_group][group]
    return first_copies


def rows_without_copies(
    parts: Mapping[str, ImageHashes],
) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return the rows of each part that equal no earlier image.

    Args:
        parts: The hashes of each part's images, u64[N,2]. Images of a part are earlier
            than those of the parts after it.

    Returns:
        For each part row numbers i64[n] in ascending order.
    """
    first_copies = find_first_copies(np.concatenate(list(parts.values())))
    is_first = first_copies == np.arange(len(first_copies))
    rows, start = {}, 0
    for name, hashes in parts.items():
        rows[name] = np.flatnonzero(is_first[start : start + len(hashes)])
        start += len(hashes)
    return rows


def is_one_colour(images: ImageBlock) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return for each image whether all its pixels are equal.

    Args:
        images: u8[n,C,H,W].

    Returns:
        bool[n].
    """
    equal = images == images[:, :, :1, :1]
    return np.asarray(equal.all(axis=(1, 2, 3)))
