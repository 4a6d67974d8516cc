"""A pool's files, manifest and digest.

This module does without PyTorch, which would take most of the memory of the processes
that build a pool.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instahide_fl.errors import PoolError

MANIFEST = "manifest.json"
IMAGES = "images.npy"
SCHEMA = 1


def describe(
    shape: tuple[int, ...],
    source: str,
    statistics: tuple[Sequence[float], Sequence[float]],
    sha256: str,
) -> dict[str, Any]:
    """Return the entries that the manifest of every pool has.

    Args:
        shape: (M, C, H, W).
        source: Origin of the images, in words.
        statistics: Mean and standard deviation of each channel, in [0, 1].
        sha256: Hex digest of shape and pixels.
    """
    mean, std = statistics
    return {
        "schema": SCHEMA,
        "count": shape[0],
        "shape": list(shape),
        "dtype": "uint8",
        "source": source,
        "mean": list(mean),
        "std": list(std),
        "sha256": sha256,
    }


def new_hasher(shape: tuple[int, ...]) -> hashlib._Hash:
    """Begin the digest of a pool of this shape; its pixels follow, in order."""
    return hashlib.sha256(repr(("u8", shape)).encode())


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """Read a pool's manifest.

    Raises:
        PoolError: the folder holds no pool, or the manifest is damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        missing = {"shape", "source", "mean", "std", "sha256"} - manifest.keys()
    except FileNotFoundError:
        raise PoolError(
            f"pool.source: no pool at {folder} (a folder with {MANIFEST} and "
            f'{IMAGES}): give the folder of a built pool, or "photos"'
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise PoolError(f"the manifest of pool {folder} is damaged: {error}") from None
    if missing:
        raise PoolError(f"the manifest of pool {folder} lacks {sorted(missing)}")
    entries: Mapping[str, Any] = manifest
    return entries


def build_facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return headings and words on how a pool was built by `pool build`.

    Args:
        manifest: The manifest of a pool; one that was not built gives no facts.
    """
    if "counts" not in manifest:
        return []
    counts, min_keypoints = manifest["counts"], manifest["min_keypoints"]
    num_tried, num_kept = counts["patches_tried"], counts["patches_kept"]
    return [
        (
            "built from",
            f"{counts['images']:,} images, {counts['unreadable']:,} unreadable, "
            f"{counts['too_small']:,} too small",
        ),
        (
            "patches",
            f"{manifest['crops']} of {manifest['patch_size']} pixels from each image, "
            f"seed {manifest['seed']}",
        ),
        (
            "filter",
            f"more than {min_keypoints} SIFT key points" if min_keypoints else "none",
        ),
        (
            "kept",
            f"{num_kept:,} of {num_tried:,} patches ({num_kept / num_tried:.1%})",
        ),
    ]
