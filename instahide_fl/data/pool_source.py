"""Finds the pictures that a pool is cut from, in folders, archives and shards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from instahide_fl.data.data_report import MAX_EXAMPLES, DataWarning, LeftOut
from instahide_fl.data.picture_archives import ARCHIVE_SUFFIXES
from instahide_fl.data.picture_files import list_picture_files
from instahide_fl.data.picture_listing import PictureFiles, PictureStore
from instahide_fl.data.picture_types import file_suffix, readable_suffixes
from instahide_fl.data.sources.base import StoredPicture
from instahide_fl.data.sources.shard_files import common_folder, expand_pattern
from instahide_fl.errors import DataError, PoolError


@dataclass(frozen=True)
class PoolSource:
    """The pictures that a pool is cut from.

    Attributes:
        path: The folder, archive or pattern.
        names: The pictures, in the order in which they are cut.
        store: Where they lie. It can be sent to another process.
        left_out: What is not read, by reason.
        warnings: What the user should look at.
        version: A text that differs whenever archives changed; empty for a folder,
            whose pictures may be mended while a build is interrupted.
    """

    path: Path
    names: Sequence[str]
    store: PictureStore
    left_out: tuple[LeftOut, ...]
    warnings: tuple[DataWarning, ...]
    version: str = ""


@dataclass(frozen=True)
class ArchivesStore(PictureStore):
    """Pictures in several archives, named by the archive and their name in it.

    Attributes:
        stores: The stores of the archives, by the archives' names.
    """

    stores: Mapping[str, PictureStore]

    def fetch(self, names: Sequence[str]) -> Sequence[StoredPicture]:
        """Return the bytes of pictures.

        Args:
            names: The names of the pictures.

        Raises:
            DataError: An archive is damaged.
        """
        fetched: list[StoredPicture] = []
        for name in names:
            archive, inner = self._divide(name)
            fetched += self.stores[archive].fetch([inner])
        return fetched

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a member.

        Args:
            name: The name of the member.

        Raises:
            DataError: An archive is damaged.
        """
        archive, inner = self._divide(name)
        return self.stores[archive].read_bytes(inner)

    def version(self, names: Sequence[str]) -> str:
        """Return a text that differs whenever an archive changed.

        Args:
            names: The names of the files, which are all.
        """
        return repr([(name, store.version([])) for name, store in self.stores.items()])

    def _divide(self, name: str) -> tuple[str, str]:
        """Return the archive of a name, and the name in it."""
        end = -1
        while (end := name.find("/", end + 1)) >= 0:
            if name[:end] in self.stores:
                return name[:end], name[end + 1 :]
        raise KeyError(name)


def open_pool_source(path: Path) -> PoolSource:
    """List the pictures of a folder, an archive, or several archives.

    A folder without pictures of its own may hold archives: .zip, .tar, or WebDataset
    shards.

    Args:
        path: The folder or archive, or a pattern such as `train-{0000..0009}.tar`.

    Raises:
        PoolError: There are no pictures, or part of the source cannot be listed.
    """
    try:
        archives = expand_pattern(path)
        if archives is None:
            source = _open_folder_or_archive(path)
        else:
            source = _open_archives(path, archives, ())
    except DataError as error:
        raise PoolError(str(error).removeprefix("data.dataset: ")) from None
    if not source.names:
        counted = ", ".join(
            f"{entry.reason} ({entry.count:,})" for entry in source.left_out
        )
        raise PoolError(
            f"no images below {path}{f' (left out: {counted})' if counted else ''}: "
            f"give a folder or an archive of pictures that Pillow reads, such as JPEG, "
            f"PNG, WebP or TIFF files"
        )
    return source


def _open_folder_or_archive(path: Path) -> PoolSource:
    files = list_picture_files(path, repeat_links=True)
    # Broken links are counted among the unreadable.
    broken = [n for n in files.broken_links if file_suffix(n) in readable_suffixes()]
    if not files.names and not files.is_archive:
        archives = [
            name
            for names in files.others.values()
            for name in names
            if name.lower().endswith(ARCHIVE_SUFFIXES)
        ]
        if archives:
            others = files.left_out(used=set(archives))
            paths = [path / name for name in sorted(archives)]
            return _open_archives(path, paths, others)
    return PoolSource(
        path=path,
        names=sorted([*files.names, *broken]),
        store=files.store,
        left_out=files.left_out(used=broken),
        warnings=files.warnings(),
        version=files.store.version([]) if files.is_archive else "",
    )


def _open_archives(
    path: Path, archives: Sequence[Path], left_out: tuple[LeftOut, ...]
) -> PoolSource:
    missing = [archive for archive in archives if not archive.is_file()]
    if missing or not archives:
        name = missing[0].name if missing else path.name
        raise PoolError(
            f"{len(missing)} of {len(archives)} archives of {path} are missing "
            f"({name}): give a pattern of files that exist"
        )
    folder = path if path.is_dir() else common_folder(archives)
    listings: dict[str, PictureFiles] = {
        archive.relative_to(folder).as_posix(): list_picture_files(archive)
        for archive in archives
    }
    store = ArchivesStore({name: files.store for name, files in listings.items()})
    return PoolSource(
        path=path,
        names=[
            f"{archive}/{name}"
            for archive, files in listings.items()
            for name in files.names
        ],
        store=store,
        left_out=_merged([*left_out, *_left_out_of(listings)]),
        warnings=tuple(w for files in listings.values() for w in files.warnings()),
        version=hashlib.sha256(store.version([]).encode()).hexdigest(),
    )


def _left_out_of(listings: Mapping[str, PictureFiles]) -> list[LeftOut]:
    return [
        replace(entry, examples=tuple(f"{archive}/{name}" for name in entry.examples))
        for archive, files in listings.items()
        for entry in files.left_out()
    ]


def _merged(entries: Sequence[LeftOut]) -> tuple[LeftOut, ...]:
    """Add up what is left out for the same reason."""
    merged: dict[str, LeftOut] = {}
    for entry in entries:
        earlier = merged.get(entry.reason, LeftOut(entry.reason, 0, ()))
        examples = (*earlier.examples, *entry.examples)[:MAX_EXAMPLES]
        count = earlier.count + entry.count
        merged[entry.reason] = LeftOut(entry.reason, count, examples)
    return tuple(merged.values())
