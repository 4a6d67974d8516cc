"""Assigns the table files of a data set to its parts, by their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from instahide_fl.data.data_report import LeftOut
from instahide_fl.data.sources.hugging_face.configurations import (
    README,
    UNNAMED_PART,
    Configuration,
    choose_configuration,
)
from instahide_fl.data.sources.part_names import part_role
from instahide_fl.errors import DataError

TABLE_KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
MAX_SHARDS = 100_000  # a greater number in a name counts something else
_KINDS_IN_ORDER = ("parquet", "arrow", "json", "csv")  # the first that exists is read
_DESCRIPTIONS = {
    README,
    "config.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
}
_SHARD_OF = re.compile(r"(.*-)(\d+)(-of-)(\d+)")  # of a number that is known
# Of the third of five files that hold a part: -00002-of-00005, -2, _0002-1b4f8a1c9e
_SHARD_NUMBER = re.compile(r"[-_.]\d+(-of-\d+)?(-[0-9a-f]{8,})?$")


def is_table(name: str) -> bool:
    """Return whether a file may hold rows of a data set, by its name."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in TABLE_KINDS and not is_description(name)


def is_description(name: str) -> bool:
    """Return whether a file only describes a data set, by its name."""
    return PurePosixPath(name).name in _DESCRIPTIONS


def table_kind(name: str) -> str:
    """Return how a table file is written: parquet, arrow, json or csv."""
    return TABLE_KINDS[PurePosixPath(name).suffix.lower()]


def assign_files(
    names: Sequence[str],
    configurations: Sequence[Configuration],
    configuration_name: str,
) -> dict[str, list[str]]:
    """Assign table files to the parts of a data set.

    Args:
        names: The table files, relative to the data set's folder, "/" between names.
        configurations: The configurations that the data set's README.md declares.
        configuration_name: The value of `data.config`.

    Returns:
        The files of each part, in order. A set whose files are named like no part has
        the single part `UNNAMED_PART`.

    Raises:
        DataError: `data.config` names no configuration, several have an equal claim, or
            the chosen one has no files.
    """
    if not configurations:
        return _assign_by_name(_of_one_folder(names, configuration_name))
    configuration = choose_configuration(configurations, configuration_name)
    names = [name for name in names if configuration.covers(name)]
    parts = {
        part: [name for name in names if configuration.is_in_part(name, part)]
        for part in configuration.patterns or ()
    }
    if set(parts) <= {UNNAMED_PART}:
        parts = _assign_by_name(parts.get(UNNAMED_PART, names))
    empty = [part for part, files in parts.items() if not files]
    if empty or not parts:
        named = f" for {', '.join(empty)}" if any(empty) else ""
        raise DataError(
            f"data.config: README.md declares files of the configuration "
            f"{configuration.name!r} that do not exist{named}: download the set anew, "
            f"or mend README.md"
        )
    return parts


def select_tables(names: Iterable[str]) -> tuple[list[str], list[LeftOut]]:
    """Select the table files that are written in one way, and report the others.

    Args:
        names: All files of a data set.

    Returns:
        The table files to read, and the files that are left out: tables written in
        another way. Pictures and texts are not counted.
    """
    tables = sorted(filter(is_table, names))
    kinds = {table_kind(name) for name in tables}
    if not kinds:
        return [], []
    first = next(kind for kind in _KINDS_IN_ORDER if kind in kinds)
    others = [name for name in tables if table_kind(name) != first]
    left_out = [LeftOut.of(f"tables beside the {first} files", others)]
    return (
        [name for name in tables if table_kind(name) == first],
        left_out if others else [],
    )


def part_of_file(name: str) -> str:
    """Return the name of the part that a table file holds.

    It is the file's own name without the number, or else the name of the innermost
    folder, if one of them is named like a part; otherwise the file's own name.

    Args:
        name: The file, relative to the data set's folder.
    """
    path = PurePosixPath(name)
    stem = _SHARD_NUMBER.sub("", path.stem)
    for candidate in (stem, *reversed(path.parts[:-1])):
        if part_role(candidate) is not None:
            return candidate
    return stem


def describe_files(part: str, names: Sequence[str]) -> str:
    """Say where a part lies: "part dev (data/dev-0.parquet)"."""
    files = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    return files if part == UNNAMED_PART else f"part {part} ({files})"


def missing_files(names: Sequence[str]) -> list[str]:
    """Return the names of files that others number: train-00001-of-00002.

    Args:
        names: The table files of a part.
    """
    matches = [match for match in map(_SHARD_OF.match, names) if match]
    present = {match.group() for match in matches}
    expected = {
        f"{match[1]}{number:0{len(match[2])}}{match[3]}{match[4]}": None
        for match in matches
        for number in range(min(int(match[4]), MAX_SHARDS))
    }
    return [name for name in expected if name not in present]


def _assign_by_name(names: Sequence[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(part_of_file(name), []).append(name)
    if any(part_role(part) is not None for part in parts):
        return parts
    # Files whose names say nothing are the pieces of one table.
    return {UNNAMED_PART: list(names)}


def _of_one_folder(names: Sequence[str], configuration_name: str) -> Sequence[str]:
    """Keep the files of one configuration, where each lies in a folder of its own.

    A set without README.md has several if one part appears in several folders.
    """
    by_folder: dict[str, list[str]] = {}
    for name in names:
        by_folder.setdefault(_configuration_folder(name), []).append(name)
    is_repeated = _has_repeated_parts(by_folder)
    if not is_repeated and not configuration_name:
        return names
    folders = {folder: None for folder in by_folder if folder} if is_repeated else {}
    if is_repeated and "" in by_folder:
        folders["."] = None
        by_folder["."] = by_folder[""]
    chosen = choose_configuration(
        [Configuration(folder) for folder in folders], configuration_name
    )
    return by_folder[chosen.name]


def _has_repeated_parts(by_folder: Mapping[str, Sequence[str]]) -> bool:
    parts = [
        part
        for names in by_folder.values()
        for part in {part_of_file(name) for name in names}
        if part_role(part) is not None
    ]
    return len(parts) != len(set(parts))


def _configuration_folder(name: str) -> str:
    """Return the folder that holds a file's part, "" for the data set's own folder."""
    folders = PurePosixPath(name).parts[:-1]
    part = part_of_file(name)
    if part in folders:
        folders = folders[: len(folders) - 1 - folders[::-1].index(part)]
    return "/".join(folders)
