"""Pictures in an archive of a folder, read without unpacking it.

Members are read into memory by their place in the archive; no file is ever written
under a member's name. A compressed tar is first decompressed to a temporary file.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from instahide_fl.data.picture_listing import (
    LEFTOVERS,
    NO_REGULAR_FILES,
    OUTSIDE_NAMES,
    REPEATED_LINKS,
    ListingBuilder,
    PictureFiles,
    PictureStore,
)
from instahide_fl.data.picture_types import HEADER_BYTES, is_leftover
from instahide_fl.data.sources.base import StoredPicture
from instahide_fl.data.tar_headers import read_tar_headers
from instahide_fl.errors import DataError, OutputError
from instahide_fl.files import cache_folder, explained
from instahide_fl.terminal import printable

ARCHIVE_SUFFIXES = (
    ".zip",
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tbz2",
    ".tar.xz",
    ".txz",
)
MAX_PICTURE_BYTES = 2**30  # a member that claims more is no picture

_READ_ERRORS = (
    EOFError,
    OSError,
    RuntimeError,  # NotImplementedError too: an unusual compression
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
_DECOMPRESSORS: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", gzip.GzipFile),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)
_MADE_ON_WINDOWS = 0  # create_system of a .zip
_COPIED_BYTES = 2**22  # of a decompressed archive in memory at a time


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive that can be listed, by name or content.

    Args:
        path: The file.
    """
    if path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return True
    try:
        return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except OSError:
        return False


def list_archive(path: Path) -> PictureFiles:
    """List all files in an archive.

    Args:
        path: The archive: .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz.

    Raises:
        DataError: It is no archive, or is encrypted or damaged.
        OutputError: There is no room to decompress it.
    """
    if not is_archive(path):
        raise DataError(
            f"{printable(str(path))} is neither a folder nor an archive of pictures "
            f"({', '.join(ARCHIVE_SUFFIXES)}): give one of these"
        )
    try:
        if zipfile.is_zipfile(path):
            return _list_zip(path)
        return _list_tar(path)
    except OutputError:  # an OSError too, but not the archive's
        raise
    except _READ_ERRORS as error:
        raise _damaged(path, error) from None


class _ArchiveStore(PictureStore):
    """Files in an archive.

    Attributes:
        path: The archive.
        stamp: Its size and time of change when it was listed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        status = path.stat()
        self.stamp = f"{status.st_size} {status.st_mtime_ns}"

    def fetch(self, names: Sequence[str]) -> Sequence[StoredPicture]:
        """Return the bytes of pictures.

        Args:
            names: The names of the pictures.

        Raises:
            DataError: The archive is damaged.
        """
        return [self.read_bytes(name) for name in names]

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a member.

        Args:
            name: The name of the member.

        Raises:
            DataError: The archive is damaged.
        """
        try:
            return self._read(name)
        except _READ_ERRORS as error:
            raise _damaged(self.path, error, name) from None

    def version(self, names: Sequence[str]) -> str:
        """Return size and time of change of the archive.

        Args:
            names: The names of the files, all in this archive.
        """
        return self.stamp

    def _read(self, name: str, limit: int = MAX_PICTURE_BYTES) -> bytes:
        raise NotImplementedError


class _ZipStore(_ArchiveStore):
    """Files in a .zip archive.

    Attributes:
        members: The names that members have in the archive, where they differ.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.members: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("path", "stamp", "members")}

    @cached_property
    def archive(self) -> zipfile.ZipFile:
        """The opened archive: reading its list of members takes seconds if long."""
        return zipfile.ZipFile(self.path)

    def _read(self, name: str, limit: int = MAX_PICTURE_BYTES) -> bytes:
        with self.archive.open(self.members.get(name, name)) as member:
            content = member.read(limit + 1)
        if len(content) > MAX_PICTURE_BYTES:
            raise RuntimeError(f"more than {MAX_PICTURE_BYTES} bytes")
        return content[:limit]


class _TarStore(_ArchiveStore):
    """Files in a .tar archive, and where they lie in it.

    Attributes:
        plain: The archive itself, or a temporary file with its decompressed content.
        places: For each name, the offset and the size of its content in bytes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.places: dict[str, tuple[int, int]] = {}
        self.plain = path
        with path.open("rb") as file:
            magic = file.read(6)
        for beginning, decompress in _DECOMPRESSORS:
            if magic.startswith(beginning):
                self.plain = _decompressed(path, decompress)
                weakref.finalize(self, self.plain.unlink, missing_ok=True)

    def _read(self, name: str, limit: int = MAX_PICTURE_BYTES) -> bytes:
        offset, size = self.places[name]
        if size > MAX_PICTURE_BYTES:
            raise RuntimeError(f"more than {MAX_PICTURE_BYTES} bytes")
        size = min(size, limit)
        with self.plain.open("rb") as file:
            content = os.pread(file.fileno(), size, offset)
        if len(content) < size:
            raise EOFError("the archive ends too early")
        return content


def _list_zip(path: Path) -> PictureFiles:
    store = _ZipStore(path)
    builder = ListingBuilder()
    members = store.archive.infolist()
    names: dict[str, None] = {}
    encrypted = [member.filename for member in members if member.flag_bits & 0x1]
    if encrypted:
        raise DataError(
            f"{printable(str(path))} is encrypted ({len(encrypted)} of its files, "
            f"{printable(encrypted[0])}): unpack it, and give the folder"
        )
    for member in members:
        # Some programs on Windows write their own separator.
        path_name = member.filename
        if member.create_system == _MADE_ON_WINDOWS:
            path_name = path_name.replace("\\", "/")
        is_folder = path_name.endswith("/")
        name = _checked_name(builder, path_name, is_folder=is_folder)
        mode = member.external_attr >> 16  # zero if the archive is not from Unix
        if name is None or is_folder:
            continue
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            reason = REPEATED_LINKS if stat.S_ISLNK(mode) else NO_REGULAR_FILES
            builder.skip(reason, name)
            continue
        # The last member of a name counts, as in unpacking.
        store.members.pop(name, None)
        if name != member.filename:
            store.members[name] = member.filename
        names[name] = None
    for name in names:
        builder.add_file(name, _header_reader(store, name))
    return builder.finish(path, store, is_archive=True)


def _list_tar(path: Path) -> PictureFiles:
    store = _TarStore(path)
    builder = ListingBuilder()
    links: dict[str, str] = {}
    names: dict[str, None] = {}
    for member in read_tar_headers(store.plain):
        name = _checked_name(builder, member.name, is_folder=member.isdir())
        if name is None or member.isdir():
            continue
        links.pop(name, None)  # the last member of a name counts, as in unpacking
        if member.isreg():
            store.places[name] = (member.offset_data, member.size)
            names[name] = None
        elif member.islnk() or member.issym():
            start = name.rpartition("/")[0] if member.issym() else ""
            links[name] = _resolved(start, member.linkname)
        else:
            builder.skip(NO_REGULAR_FILES, name)
    for name, target in links.items():
        if target in store.places:
            store.places[name] = store.places[target]
            names[name] = None
        else:
            builder.add_broken_link(name)
    for name in names:
        builder.add_file(name, _header_reader(store, name))
    return builder.finish(path, store, is_archive=True)


def _header_reader(store: _ArchiveStore, name: str) -> Callable[[], bytes]:
    return lambda: store._read(name, limit=HEADER_BYTES)


def _checked_name(
    builder: ListingBuilder, member: str, *, is_folder: bool
) -> str | None:
    """Return the name of a member in the listing; None if it is left out."""
    parts = [part for part in member.split("/") if part not in ("", ".")]
    name = "/".join(parts)
    if ".." in parts:
        builder.skip(OUTSIDE_NAMES, name)
        return None
    if any(map(is_leftover, parts)):
        builder.skip(LEFTOVERS, name, count=0 if is_folder else 1)
        return None
    builder.add_parents(name)
    if is_folder:
        builder.add_folder(name)
    return name


def _resolved(start: str, target: str) -> str:
    """Return the name that a link in a folder of the archive leads to."""
    parts: list[str] = []
    for part in (PurePosixPath(start) / target).parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _decompressed(path: Path, decompress: Callable[[Path], Any]) -> Path:
    """Decompress an archive to a temporary file below the cache folder."""
    folder = cache_folder("archives")
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(".tar", "archive-", folder)
    plain = Path(name)
    try:
        with os.fdopen(handle, "wb") as output, decompress(path) as compressed:
            while content := compressed.read(_COPIED_BYTES):
                with explained(folder):
                    output.write(content)
    except BaseException:
        plain.unlink(missing_ok=True)
        raise
    return plain


def _damaged(path: Path, error: Exception, name: str = "") -> DataError:
    member = f"{printable(name)} in " if name else ""
    reason = printable(str(error).partition("\n")[0]) or type(error).__name__
    return DataError(
        f"cannot read {member}{printable(str(path))} ({reason}): it is damaged or no "
        f"archive: fetch it again, or unpack it and give the folder"
    )
