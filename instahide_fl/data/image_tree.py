"""Lists the image files below a folder, however they are arranged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from instahide_fl.errors import PoolError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


def list_images(folder: Path) -> list[str]:
    """List image files by name, at any depth.

    Symbolic links are followed, except back into a folder that is being listed. Hidden
    files and folders are left out.

    Args:
        folder: The top of the tree.

    Returns:
        Paths relative to `folder` with "/" between their parts, sorted.

    Raises:
        PoolError: `folder` is no folder, or part of it cannot be listed.
    """
    if not folder.is_dir():
        reason = "not a folder" if folder.exists() else "no such folder"
        raise PoolError(f"{folder}: {reason}: give a folder with images below it")
    try:
        return sorted(_walk(str(folder), "", frozenset()))
    except OSError as error:
        raise PoolError(
            f"cannot list {error.filename or folder}: {error.strerror}: a pool that "
            f"lacks part of its source would be another pool"
        ) from None


def _walk(
    folder: str, prefix: str, ancestors: frozenset[tuple[int, int]]
) -> Iterator[str]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            is_link = entry.is_symlink()
            # A link to itself makes DirEntry.is_dir raise; os.path.isdir says no.
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                inner = f"{prefix}{entry.name}/"
                yield from _walk(entry.path, inner, ancestors | {identity})
            elif entry.name.lower().endswith(SUFFIXES) and (is_link or entry.is_file()):
                # A broken link too: it is counted among the unreadable.
                yield prefix + entry.name
