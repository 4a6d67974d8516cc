"""The pictures below a folder or in an archive, and what else lies there."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from instahide_fl.data.data_report import (
    MAX_EXAMPLES,
    DataWarning,
    LeftOut,
    examples,
)
from instahide_fl.data.picture_types import (
    file_suffix,
    readable_suffixes,
    suffix_by_header,
    unreadable_kind,
)
from instahide_fl.data.sources.base import StoredPicture
from instahide_fl.terminal import counted, printable

NO_SUFFIX = "without suffix"
BROKEN_LINKS = "broken links"
REPEATED_LINKS = "links to folders that are read already"
LEFTOVERS = "hidden files and folders, and what programs leave behind"
NO_REGULAR_FILES = "pipes, sockets and devices"
OUTSIDE_NAMES = "names that lead out of the archive"


class PictureStore(ABC):
    """Where the files of a listing lie. It can be sent to another process."""

    @abstractmethod
    def fetch(self, names: Sequence[str]) -> Sequence[StoredPicture]:
        """Return the stored pictures with these names.

        Args:
            names: The names, as `PictureFiles` lists them.

        Raises:
            DataError: The archive is damaged, or has changed.
        """

    @abstractmethod
    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file.

        Args:
            name: The name, as `PictureFiles` lists it.

        Raises:
            DataError: The file cannot be read.
        """

    @abstractmethod
    def version(self, names: Sequence[str]) -> str:
        """Return a text that differs whenever the files with these names changed.

        Args:
            names: The names, as `PictureFiles` lists them.

        Raises:
            DataError: A file is missing.
        """


@dataclass(frozen=True)
class PictureFiles:
    """All files below a folder or in an archive, by name.

    Names are paths relative to the folder with "/" between their parts, sorted. Bytes
    that are not UTF-8 stand in them as lone surrogates (`printable` shows them).

    Attributes:
        origin: The folder or archive.
        names: The pictures.
        folders: All folders, but those that are left out; the top is not among them.
        others: The files that are no pictures, by suffix, or `NO_SUFFIX`.
        broken_links: Links that lead nowhere.
        skipped: What is left out whatever it holds, by reason.
        store: Where the files lie.
        is_archive: Whether the origin is an archive.
    """

    origin: Path
    names: tuple[str, ...]
    folders: tuple[str, ...]
    others: Mapping[str, tuple[str, ...]]
    broken_links: tuple[str, ...]
    skipped: tuple[LeftOut, ...]
    store: PictureStore
    is_archive: bool

    def fetch(self, names: Sequence[str]) -> Sequence[StoredPicture]:
        """Return stored pictures, which are not decoded yet.

        Args:
            names: The names of the pictures.

        Raises:
            DataError: The archive is damaged, or has changed.
        """
        return self.store.fetch(names)

    @property
    def identity(self) -> str:
        """A text that differs whenever a name, or the content of a file, may differ."""
        others = [name for names in self.others.values() for name in names]
        listing = hashlib.sha256()
        for name in (*self.folders, "", *self.names, "", *others):
            listing.update(repr(name).encode() + b"\n")
        version = self.store.version([*self.names, *others])
        return f"{self.origin.resolve()!r} {listing.hexdigest()} {version}"

    def left_out(self, used: Collection[str] = ()) -> tuple[LeftOut, ...]:
        """Return all files that are not read as pictures, by reason.

        Args:
            used: The names of files that are read otherwise, such as tables of labels.
        """
        entries = list(self.skipped)
        if self.broken_links:
            entries.append(LeftOut.of(BROKEN_LINKS, self.broken_links))
        for suffix, names in sorted(self.others.items()):
            if unused := [name for name in names if name not in used]:
                entries.append(LeftOut.of(f"file type {suffix}", unused))
        return tuple(entries)

    def warnings(self) -> tuple[DataWarning, ...]:
        """Return warnings about pictures that cannot be read, with a remedy each."""
        messages = []
        for suffix, names in sorted(self.others.items()):
            if kind := unreadable_kind(suffix):
                files = counted(
                    len(names),
                    f"{kind.title} file ({suffix}) is",
                    f"{kind.title} files ({suffix}) are",
                )
                problem = f"{files} left out ({examples(names)})"
                messages.append(DataWarning(problem, kind.remedy))
        if self.broken_links:
            problem = (
                f"{counted(len(self.broken_links), 'link leads', 'links lead')} "
                f"nowhere ({examples(self.broken_links)})"
            )
            remedy = "restore what they lead to, or remove them"
            messages.append(DataWarning(problem, remedy))
        return tuple(messages)


class ListingBuilder:
    """Sorts the files that a walk meets into pictures, others and what is left out."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._folders: set[str] = set()
        self._others: dict[str, list[str]] = {}
        self._broken_links: list[str] = []
        self._skipped: dict[str, tuple[int, list[str]]] = {}

    def add_folder(self, name: str) -> None:
        """Add a folder; the top of the tree is left out.

        Args:
            name: The name of the folder.
        """
        if name:
            self._folders.add(name)

    def add_parents(self, name: str) -> None:
        """Add all folders that a file or folder lies in.

        Args:
            name: The name of the file or folder.
        """
        parent = name.rpartition("/")[0]
        while parent and parent not in self._folders:
            self._folders.add(parent)
            parent = parent.rpartition("/")[0]

    def add_file(self, name: str, header: Callable[[], bytes]) -> None:
        """Add a regular file, as a picture or as another file.

        Args:
            name: The name of the file.
            header: A function that returns its first bytes, which is called where the
                name does not tell the type.
        """
        suffix = file_suffix(name) or suffix_by_header(header())
        if suffix in readable_suffixes():
            self._names.append(name)
        else:
            self._others.setdefault(suffix or NO_SUFFIX, []).append(name)

    def add_broken_link(self, name: str) -> None:
        """Add a link that leads nowhere.

        Args:
            name: The name of the link.
        """
        self._broken_links.append(name)

    def skip(self, reason: str, name: str, count: int = 1) -> None:
        """Count files that are left out whatever they hold.

        Args:
            reason: The reason, as a phrase.
            name: The name of the file, or of the folder that holds them.
            count: The number of files.
        """
        if count:
            total, names = self._skipped.get(reason, (0, []))
            # The same examples whatever the order that folders are read in.
            first = sorted([*names, name])[:MAX_EXAMPLES]
            self._skipped[reason] = (total + count, first)

    def finish(
        self, origin: Path, store: PictureStore, *, is_archive: bool
    ) -> PictureFiles:
        """Return the listing.

        Args:
            origin: The folder or archive.
            store: Where the files lie.
            is_archive: Whether the origin is an archive.
        """
        others = {suffix: tuple(sorted(n)) for suffix, n in self._others.items()}
        skipped = tuple(
            LeftOut(reason, count, tuple(map(printable, sorted(names))))
            for reason, (count, names) in sorted(self._skipped.items())
        )
        return PictureFiles(
            origin=origin,
            names=tuple(sorted(self._names)),
            folders=tuple(sorted(self._folders)),
            others=others,
            broken_links=tuple(sorted(self._broken_links)),
            skipped=skipped,
            store=store,
            is_archive=is_archive,
        )
