"""Lists the image files of a pool's source, however they are arranged."""

from __future__ import annotations

from pathlib import Path

from instahide_fl.data.picture_files import list_picture_files
from instahide_fl.data.picture_types import file_suffix, readable_suffixes
from instahide_fl.errors import DataError, PoolError


def list_images(folder: Path) -> list[str]:
    """List image files by name, at any depth.

    Broken links are among them: they are counted among the unreadable.

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
        files = list_picture_files(folder, repeat_links=True)
    except DataError as error:
        raise PoolError(str(error)) from None
    broken = [n for n in files.broken_links if file_suffix(n) in readable_suffixes()]
    return sorted([*files.names, *broken])
