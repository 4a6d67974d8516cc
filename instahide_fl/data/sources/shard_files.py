"""Finds the shards of a WebDataset: one .tar, a folder of them, or a pattern."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from instahide_fl.data.data_report import LeftOut, examples
from instahide_fl.data.picture_types import readable_suffixes
from instahide_fl.data.sources.part_names import part_role
from instahide_fl.errors import DataError

SHARD_SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
CLASS_NAME_FILES = ("classnames.txt", "class_names.txt", "classes.txt", "labels.txt")
# Files that hold rows of a Hugging Face data set.
DATA_SUFFIXES = {".parquet", ".arrow", ".csv", ".jsonl"}
MAX_PATTERN_SHARDS = 1_000_000
_SHARD_NUMBER = re.compile(r"[-_.]?(\d+)([-_.]?of[-_.]?(\d+))?$")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class ShardFiles:
    """The files of a WebDataset.

    Attributes:
        folder: The folder that names are relative to.
        shards: The shards, in the order of their names.
        class_names_file: The file with the names of classes; None if there is none.
        left_out: Other files of the folder.
    """

    folder: Path
    shards: tuple[Path, ...]
    class_names_file: Path | None
    left_out: tuple[LeftOut, ...]

    def name(self, shard: Path) -> str:
        """Return the name of a shard, relative to the folder."""
        return shard.relative_to(self.folder).as_posix()

    def groups(self) -> dict[str, list[int]]:
        """Return the numbers of the shards of each part, by the part's name.

        A folder named like a part (`train/0.tar`) goes before the names of files
        (`train-0000.tar`). Without any name of a part, all shards are one part.
        """
        groups: dict[str, list[int]] = {}
        for number, shard in enumerate(self.shards):
            groups.setdefault(_group(self.name(shard)), []).append(number)
        if not any(part_role(name) for name in groups):
            return {"all": list(range(len(self.shards)))}
        return groups


def find_shards(reference: str) -> ShardFiles:
    """Find the shards that a path names.

    Args:
        reference: A .tar file, a folder with .tar files at any depth, or a path with
            number ranges (`train-{0000..0009}.tar`), alternatives (`{train,val}.tar`)
            or `*`.

    Raises:
        DataError: There are none, some of a pattern are missing, or some are
            compressed.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return _shards_of_folder(path)
    shards = expand_pattern(path)
    if shards is None or "{" in reference:
        shards = _existing(reference, shards or [path])
    _refuse_compressed(shards)
    if not shards:
        raise DataError(f"data.dataset: webdataset:{reference} names no file")
    folder = common_folder(shards)
    return ShardFiles(folder, tuple(shards), _class_names_file(folder), ())


def expand_pattern(path: Path) -> list[Path] | None:
    """Return the files that a pattern names, or None if it is none.

    Args:
        path: A path that may hold `{0000..0009}`, `{a,b}` or, in its last part, `*`.

    Raises:
        DataError: Braces hold something else, or stand for too many names.
    """
    if path.exists():
        return None
    if "{" in str(path):
        return [Path(name) for name in expand_braces(str(path))]
    return sorted(path.parent.glob(path.name)) if "*" in path.name else None


def common_folder(files: Sequence[Path]) -> Path:
    """Return the innermost folder that holds all of some files.

    Args:
        files: The files, at least one.
    """
    levels = zip(*(file.parent.parts for file in files), strict=False)
    common = itertools.takewhile(lambda names: len(set(names)) == 1, levels)
    return Path(*(names[0] for names in common))


def is_folder_of_shards(reference: str) -> bool:
    """Return whether a path is a folder with shards and without other data.

    Args:
        reference: Any path.
    """
    folder = Path(reference).expanduser()
    if not folder.is_dir():
        return False
    # Before all files are listed, which takes minutes where there are millions.
    parts = [folder / name for name in os.listdir(folder) if part_role(name)]
    near = [folder, *filter(Path.is_dir, parts)]
    if not any(name.endswith(SHARD_SUFFIX) for f in near for name in os.listdir(f)):
        return False
    suffixes = {path.suffix.lower() for path in folder.rglob("*")}
    return not suffixes & (DATA_SUFFIXES | readable_suffixes())


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern with `{0000..0009}` and `{a,b}` stands for.

    Args:
        pattern: The pattern.

    Raises:
        DataError: Braces hold something else, or there would be too many names.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    names = [
        pattern[: match.start()] + text + rest
        for rest in expand_braces(pattern[match.end() :])
        for text in _alternatives(match[1], pattern)
    ]
    if len(names) > MAX_PATTERN_SHARDS:
        raise DataError(
            f"data.dataset: {pattern} stands for more than {MAX_PATTERN_SHARDS:,} files"
        )
    return sorted(names)


def missing_numbers(names: Sequence[str]) -> list[int]:
    """Return the numbers that lack between a part's numbered shards.

    Args:
        names: The names of the shards, for instance `train-0000.tar` or
            `train-00000-of-00010.tar`.
    """
    matches = [_SHARD_NUMBER.search(PurePosixPath(name).stem) for name in names]
    numbers = {int(match[1]) for match in matches if match}
    totals = {int(match[3]) for match in matches if match and match[3]}
    if len(numbers) < len(names):
        return []  # not numbered, or numbered anew in each folder
    last = max(totals) - 1 if totals and 0 in numbers else max(numbers)
    first = 0 if totals else min(numbers)
    # Numbers far apart count something else, such as the time.
    if last - first >= 2 * len(numbers):
        return []
    return sorted(set(range(first, last + 1)) - numbers)


def _alternatives(text: str, pattern: str) -> list[str]:
    limits = _RANGE.fullmatch(text)
    if limits is None and "," in text:
        return text.split(",")
    if limits is None or int(limits[1]) > int(limits[2]):
        raise DataError(
            f"data.dataset: {{{text}}} in {pattern} is no range of shards: write for "
            f"instance {{0000..0009}}, or {{train,val}}"
        )
    first, last = int(limits[1]), int(limits[2])
    if last - first >= MAX_PATTERN_SHARDS:
        raise DataError(
            f"data.dataset: {{{text}}} in {pattern} stands for more than "
            f"{MAX_PATTERN_SHARDS:,} files"
        )
    return [str(number).zfill(len(limits[1])) for number in range(first, last + 1)]


def _existing(reference: str, shards: Sequence[Path]) -> list[Path]:
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise DataError(
            f"data.dataset: webdataset:{reference}: shards are missing or no files "
            f"({len(missing)} of {len(shards)}: {examples(missing)}): give a "
            f".tar file, a folder with .tar files, or a pattern such as "
            f"train-{{0000..0009}}.tar"
        )
    return list(shards)


def _shards_of_folder(folder: Path) -> ShardFiles:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder).parts for path in files}
    visible = [
        path for path in files if not any(part.startswith(".") for part in names[path])
    ]
    _refuse_compressed(visible)
    shards = [path for path in visible if path.suffix.lower() == SHARD_SUFFIX]
    if not shards:
        raise DataError(
            f"data.dataset: webdataset:{folder} has no .tar files: a folder of "
            f"pictures is imagefolder:{folder}, one of parquet files hf:{folder}"
        )
    class_names_file = _class_names_file(folder)
    others = [
        "/".join(names[path])
        for path in visible
        if path not in shards and path != class_names_file
    ]
    left_out = (LeftOut.of("no shards (.tar)", others),) if others else ()
    return ShardFiles(folder, tuple(shards), class_names_file, left_out)


def _refuse_compressed(files: Sequence[Path]) -> None:
    compressed = [path for path in files if path.name.lower().endswith(COMPRESSED)]
    if compressed:
        raise DataError(
            f"data.dataset: {len(compressed)} shards are compressed "
            f"({compressed[0].name}), so no picture can be found in them without "
            f"unpacking all before it: unpack them, for instance with gunzip"
        )


def _class_names_file(folder: Path) -> Path | None:
    files = [folder / name for name in CLASS_NAME_FILES]
    return next((file for file in files if file.is_file()), None)


def _group(name: str) -> str:
    path = PurePosixPath(name)
    folders = [part for part in path.parts[:-1] if part_role(part)]
    if folders:
        return folders[0]
    return _SHARD_NUMBER.sub("", path.stem) or path.stem
