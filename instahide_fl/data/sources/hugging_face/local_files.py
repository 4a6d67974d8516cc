"""Finds out how a data set lies on this machine, and opens its parts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instahide_fl.data.data_report import LeftOut
from instahide_fl.data.picture_listing import PictureFiles
from instahide_fl.data.sources.base import file_listing
from instahide_fl.data.sources.hugging_face.column_kinds import (
    picture_kind,
)
from instahide_fl.data.sources.hugging_face.configurations import (
    UNNAMED_PART,
    read_configurations,
    read_declared_features,
)
from instahide_fl.data.sources.hugging_face.content import PartTables
from instahide_fl.data.sources.hugging_face.part_files import (
    assign_files,
    describe_files,
    is_description,
    is_table,
    missing_files,
    select_tables,
    table_kind,
)
from instahide_fl.data.sources.hugging_face.tables import (
    Table,
    open_table,
    table_of_dataset,
)
from instahide_fl.data.sources.label_tables import (
    TABLE_SUFFIXES as LABEL_TABLE_SUFFIXES,
)
from instahide_fl.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_SAVED_PARTS = "dataset_dict.json"  # in the folder of DatasetDict.save_to_disk
_SAVED_STATE = "state.json"  # in that of Dataset.save_to_disk


def list_tables(listing: PictureFiles) -> list[str]:
    """Return the table files of a listing.

    Args:
        listing: All files below the folder of a data set.

    Raises:
        DataError: A table file is a link that leads nowhere.
    """
    for name in filter(is_table, listing.broken_links):
        raise DataError(
            f"data.dataset: {listing.origin / name} is a link that leads nowhere: "
            f"download the data set anew, or remove the link"
        )
    return [
        name for names in listing.others.values() for name in filter(is_table, names)
    ]


def is_stored_as_tables(listing: PictureFiles) -> bool:
    """Return whether a data set is stored as tables, and not as a folder of pictures.

    A table of text beside pictures lists their labels, or something else.

    Args:
        listing: All files below the folder of the data set.

    Raises:
        DataError: A table file is damaged.
    """
    tables, _ = select_tables(list_tables(listing))
    if not tables:
        return False
    if table_kind(tables[0]) in ("parquet", "arrow") or not listing.names:
        return True
    if tables[0].lower().endswith(LABEL_TABLE_SUFFIXES):
        return False
    return names_pictures(open_table(listing.origin / tables[0], tables[0]))


def names_pictures(table: Table) -> bool:
    """Return whether a column of a table holds the paths of picture files.

    Args:
        table: The table.
    """
    return any(picture_kind(table, name) == "path" for name in table.schema.names)


def outside_files(tables: Iterable[Table]) -> str:
    """List the pictures that tables name outside of their own folders, by version.

    Args:
        tables: The tables, of which only columns of paths are read.
    """
    outside: dict[Path, None] = {}
    for table in tables:
        for name in table.schema.names:
            if picture_kind(table, name) != "path":
                continue
            for path in map(Path, filter(None, table.read_column(name).to_pylist())):
                if path.is_absolute() or ".." in path.parts:
                    outside[table.folder / path] = None
    files = [path.absolute() for path in outside if path.is_file()]
    return file_listing(Path("/"), files) if files else ""


def is_saved_to_disk(folder: Path) -> bool:
    """Return whether the `datasets` library's `save_to_disk` wrote a folder."""
    return (folder / _SAVED_PARTS).is_file() or (folder / _SAVED_STATE).is_file()


def saved_parts(folder: Path) -> dict[str, PartTables]:
    """Find the parts of a data set that `save_to_disk` wrote.

    Args:
        folder: The folder.

    Raises:
        DataError: The description of the parts is damaged.
    """
    if not (folder / _SAVED_PARTS).is_file():
        return {UNNAMED_PART: PartTables(folder.name, partial(_open_saved, folder))}
    try:
        names = json.loads((folder / _SAVED_PARTS).read_text())["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(folder / _SAVED_PARTS, "it lists no parts") from None
    return {
        name: PartTables(f"part {name}", partial(_open_saved, folder / name))
        for name in names
    }


def table_parts(
    listing: PictureFiles, configuration_name: str
) -> tuple[dict[str, PartTables], list[LeftOut]]:
    """Find the parts of a data set that is stored as table files.

    Args:
        listing: All files below the folder of the data set.
        configuration_name: The value of `data.config`.

    Returns:
        The parts, and the files that are left out.

    Raises:
        DataError: The configuration or its files are not certain.
    """
    folder = listing.origin
    tables, left_out = select_tables(list_tables(listing))
    files_of_parts = assign_files(
        tables, read_configurations(folder), configuration_name
    )
    features = read_declared_features(folder, configuration_name)
    parts = {
        part: PartTables(
            describe_files(part, files),
            partial(_open_files, folder, files, features),
            missing_files(files),
        )
        for part, files in files_of_parts.items()
    }
    others = itertools.chain.from_iterable(listing.others.values())
    described = [name for name in others if is_table(name) or is_description(name)]
    return parts, [*listing.left_out(described), *left_out]


def dataset_parts(loaded: Mapping[str, Dataset]) -> dict[str, PartTables]:
    """Return the parts of a data set that the `datasets` library has prepared.

    Args:
        loaded: The parts by name.
    """

    def open_tables(name: str) -> list[Table]:
        return [table_of_dataset(loaded[name], Path.cwd(), name)]

    return {
        name: PartTables(f"part {name}", partial(open_tables, name)) for name in loaded
    }


def _open_files(
    folder: Path, names: Sequence[str], features: Mapping[str, Any]
) -> list[Table]:
    tables = [open_table(folder / name, name) for name in names]
    # What a file itself declares goes before what README.md does.
    return [
        table if table.features else replace(table, features=features)
        for table in tables
    ]


def _open_saved(folder: Path) -> list[Table]:
    import datasets

    datasets.disable_progress_bars()
    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:  # of Arrow, of JSON, or of missing files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _damaged(folder, reason) from None
    return [table_of_dataset(dataset, folder, folder.name)]


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"data.dataset: {path} cannot be read ({reason}): save the data set anew"
    )
