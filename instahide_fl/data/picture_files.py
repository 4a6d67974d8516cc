"""Lists the pictures below a folder or in an archive: data sets and pools alike.

Hidden files, what file managers and operating systems leave behind, and what is no
regular file are left out and counted. Each real folder is read once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instahide_fl.data.picture_archives import list_archive
from instahide_fl.data.picture_listing import (
    LEFTOVERS,
    NO_REGULAR_FILES,
    REPEATED_LINKS,
    ListingBuilder,
    PictureFiles,
    PictureStore,
)
from instahide_fl.data.picture_types import HEADER_BYTES, is_leftover
from instahide_fl.data.sources.base import StoredPicture
from instahide_fl.errors import DataError
from instahide_fl.terminal import printable

FolderId = tuple[int, int]  # device and inode: the same for every path to a folder


def list_picture_files(origin: Path, *, repeat_links: bool = False) -> PictureFiles:
    """List all files below a folder or in an archive (.zip, .tar, .tar.gz, ...).

    Links to files and to folders outside are followed, each folder once; a link to a
    folder that is read anyway, or that holds the whole tree, is left out.

    Args:
        origin: The folder or archive.
        repeat_links: Whether a folder outside is read anew for every link to it.

    Returns:
        The listing, which is the same whatever the order of the file system.

    Raises:
        DataError: There is no such folder or archive, or part of it cannot be listed.
    """
    if origin.is_dir():
        return _list_folder(origin, repeat_links)
    if origin.is_file():
        return list_archive(origin)
    reason = "neither a folder nor a file" if origin.exists() else "no such folder"
    raise DataError(f"{printable(str(origin))}: {reason} or archive of pictures")


@dataclass(frozen=True)
class FolderStore(PictureStore):
    """Files below a folder.

    Attributes:
        folder: The folder.
    """

    folder: Path

    def fetch(self, names: Sequence[str]) -> Sequence[StoredPicture]:
        """Return the paths of pictures.

        Args:
            names: The names of the pictures.
        """
        return [self.folder / name for name in names]

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file.

        Args:
            name: The name of the file.

        Raises:
            DataError: The file cannot be read.
        """
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise _unlisted(error, self.folder / name) from None

    def version(self, names: Sequence[str]) -> str:
        """Hash the sizes and times of change of files.

        Args:
            names: The names of the files.

        Raises:
            DataError: A file is missing.
        """
        listing = hashlib.sha256()
        for name in names:
            path = os.path.join(self.folder, name)
            try:
                status = os.stat(path)
            except OSError as error:
                raise _unlisted(error, Path(path)) from None
            listing.update(b"%d %d\n" % (status.st_size, status.st_mtime_ns))
        return listing.hexdigest()


def _list_folder(folder: Path, repeat_links: bool) -> PictureFiles:
    walk = _FolderWalk(str(folder), repeat_links)
    try:
        walk.run()
    except OSError as error:
        raise _unlisted(error, folder) from None
    return walk.builder.finish(folder, FolderStore(folder), is_archive=False)


@dataclass(frozen=True)
class _Branch:
    """A folder to read.

    Attributes:
        path: The path of the folder, or of a link to it.
        name: Its name in the listing.
        visited: The folders that are read already; a set that branches share.
    """

    path: str
    name: str
    visited: set[FolderId]


class _FolderWalk:
    """Reads a tree: real folders first, so that links to them are recognised."""

    def __init__(self, folder: str, repeat_links: bool) -> None:
        self.builder = ListingBuilder()
        self._repeat_links = repeat_links
        self._links: list[_Branch] = []
        self._root = _Branch(folder, "", set())

    def run(self) -> None:
        """Read the whole tree.

        Raises:
            OSError: A folder cannot be listed.
        """
        self._read_tree(self._root)
        # A link to a folder around the tree would bring it in a second time.
        real = Path(self._root.path).resolve()
        self._root.visited.update(_folder_id(str(path)) for path in real.parents)
        is_first = True
        while self._links:
            links, self._links = sorted(self._links, key=lambda link: link.name), []
            for link in links:
                if is_first and self._repeat_links:
                    link = _Branch(link.path, link.name, set(link.visited))
                self._read_tree(link)
            is_first = False

    def _read_tree(self, top: _Branch) -> None:
        pending = [top]
        while pending:
            branch = pending.pop()
            identity = _folder_id(branch.path)
            if identity in branch.visited:
                self.builder.skip(REPEATED_LINKS, branch.name)
                continue
            branch.visited.add(identity)
            self.builder.add_folder(branch.name)
            with os.scandir(branch.path) as entries:
                for entry in entries:
                    inner = self._add(branch, entry)
                    if inner:
                        pending.append(inner)

    def _add(self, branch: _Branch, entry: os.DirEntry[str]) -> _Branch | None:
        """Add an entry of a folder; return it if it is a real folder to read."""
        name = f"{branch.name}/{entry.name}" if branch.name else entry.name
        if is_leftover(entry.name):
            self.builder.skip(LEFTOVERS, name, _count_files(entry))
        elif entry.is_dir(follow_symlinks=False):
            return _Branch(entry.path, name, branch.visited)
        elif entry.is_symlink() and os.path.isdir(entry.path):
            self._links.append(_Branch(entry.path, name, branch.visited))
        # os.path.* answer "no" for a link to itself, where DirEntry's methods raise.
        elif entry.is_symlink() and not os.path.exists(entry.path):
            self.builder.add_broken_link(name)
        elif os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file():
            self.builder.add_file(name, lambda: _header(entry.path))
        else:
            self.builder.skip(NO_REGULAR_FILES, name)
        return None


def _folder_id(path: str) -> FolderId:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _count_files(entry: os.DirEntry[str]) -> int:
    """Count the files in an entry, and a folder that cannot be read as one."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    failures: list[OSError] = []
    walk = os.walk(entry.path, onerror=failures.append)
    return sum(len(files) for _, _, files in walk) + len(failures)


def _header(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEADER_BYTES)


def _unlisted(error: OSError, path: Path) -> DataError:
    where = printable(str(error.filename or path))
    return DataError(
        f"cannot read {where}: {error.strerror}: give this user the right to read it, "
        f"or take it out of the folder, because part of a data set is another data set"
    )
