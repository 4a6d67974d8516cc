"""The samples of WebDataset shards: members of a tar archive that share a key.

A member's key is its path up to the first dot of the file's name, and its column is the
rest: `a/0001.jpg` and `a/0001.cls` are the columns `jpg` and `cls` of sample `a/0001`.
A shard is read once for where its members lie; they are fetched from there.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from instahide_fl.data.picture_types import (
    file_suffix,
    is_leftover,
    readable_suffixes,
)
from instahide_fl.data.tar_headers import read_tar_headers
from instahide_fl.errors import DataError

LABEL_COLUMNS = ("cls", "json", "txt")  # that may hold a sample's class
MAX_PROBED = 1000  # members that tell a WebDataset shard from an archived folder


class MemberSpan(NamedTuple):
    """Where a member's content lies in its shard.

    Attributes:
        shard: The number of the shard.
        offset: The first byte.
        size: The number of bytes.
    """

    shard: int
    offset: int
    size: int


class Sample(NamedTuple):
    """The members that share a key.

    Attributes:
        key: The path up to the first dot of the file's name.
        columns: The members, by the rest of their names in small letters.
    """

    key: str
    columns: dict[str, MemberSpan]


@dataclass
class ShardContent:
    """What a shard holds.

    Attributes:
        samples: Its samples, in the order in which they begin.
        hidden: Names of hidden files, which are not read.
        irregular: Names of links and devices, which are not read.
    """

    samples: list[Sample] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    irregular: list[str] = field(default_factory=list)


def is_picture_column(column: str) -> bool:
    """Return whether a column holds pictures: `jpg`, `seg.png`."""
    return file_suffix(f"name.{column}") in readable_suffixes()


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the column of a member; no column if there is no dot."""
    folder, slash, file = name.rpartition("/")
    stem, _, column = file.partition(".")
    return folder + slash + stem, column.lower()


def read_shard(path: Path, number: int) -> ShardContent:
    """Read where the samples of a shard lie.

    Args:
        path: The shard, a tar archive without compression.
        number: The shard's number, which goes into the spans.

    Raises:
        DataError: The file is no such archive, it ends too early, or a sample has two
            members of one column.
    """
    content = ShardContent()
    columns_of: dict[str, dict[str, MemberSpan]] = {}
    for info in _headers(path):
        name = info.name.removeprefix("./")
        if info.isdir():
            continue
        if _is_hidden(name):
            content.hidden.append(name)
        elif not info.isreg() or info.issparse():
            content.irregular.append(name)
        else:
            key, column = split_name(name)
            columns = columns_of.setdefault(key, {})
            if column in columns:
                raise DataError(
                    f"data.dataset: {path} has {name} twice, so it is not certain "
                    f"which belongs to sample {key}: write the shard anew"
                )
            columns[column] = MemberSpan(number, info.offset_data, info.size)
    content.samples = [Sample(key, columns) for key, columns in columns_of.items()]
    return content


def holds_samples(path: Path) -> bool:
    """Return whether a file is a WebDataset shard, and no archived folder of pictures.

    In a shard, pictures have their class beside them, in a file of the same key. A text
    beside pictures that lie in several folders may be something else.

    Args:
        path: Any file.
    """
    columns_of: dict[str, set[str]] = {}
    if not path.is_file():
        return False
    try:
        for info in islice(_headers(path), MAX_PROBED):
            if info.isreg() and not _is_hidden(info.name.removeprefix("./")):
                key, column = split_name(info.name)
                columns_of.setdefault(key, set()).add(column)
    except DataError:
        return False
    pictures = {
        key: columns
        for key, columns in columns_of.items()
        if any(map(is_picture_column, columns))
    }
    folders = {key.rpartition("/")[0] for key in pictures}
    labels = LABEL_COLUMNS[:1] if len(folders) > 1 else LABEL_COLUMNS
    return any(columns.intersection(labels) for columns in pictures.values())


def fetch_members(shards: Sequence[Path], spans: Iterable[MemberSpan]) -> list[bytes]:
    """Read the content of members, fastest in the order in which they lie.

    Args:
        shards: All shards, by their numbers.
        spans: The members.

    Raises:
        DataError: A shard has been removed or cut since it was listed.
    """
    contents, number, descriptor = [], -1, -1
    try:
        for span in spans:
            if span.shard != number:
                if descriptor >= 0:
                    os.close(descriptor)
                descriptor, number = -1, span.shard
                descriptor = os.open(shards[number], os.O_RDONLY)
            contents.append(os.pread(descriptor, span.size, span.offset))
            if len(contents[-1]) < span.size:
                raise OSError("it has been cut")
    except OSError as error:
        raise DataError(
            f"data.dataset: cannot read {shards[number]} ({error.strerror or error}): "
            f"shards must stay as they are while they are read"
        ) from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return contents


def _is_hidden(name: str) -> bool:
    return any(map(is_leftover, name.split("/")))


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    with _read_errors(path):
        yield from read_tar_headers(path)


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"data.dataset: {path} is no readable tar archive ({error}): shards are "
            f"plain .tar files (unpack .gz ones with gunzip), copy a damaged one again"
        ) from None
