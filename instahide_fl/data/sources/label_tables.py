"""Reads tables of picture and label: `metadata.csv`, `labels.csv`, `metadata.jsonl`.

A table is used where its reading is certain: a column names files that exist, and one
column holds the classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from instahide_fl.config import DataConfig
from instahide_fl.data.data_report import LeftOut, examples
from instahide_fl.data.sources.part_names import part_role
from instahide_fl.data.sources.picture_names import MIN_MATCHED_SHARE, PictureNames
from instahide_fl.data.sources.picture_tree import base_name, parent
from instahide_fl.data.sources.table_rows import (
    TableRows,
    UnusableTable,
    parse_table,
)
from instahide_fl.errors import DataError
from instahide_fl.terminal import printable, shortened

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")

# Without case and punctuation: Image_Name is imagename.
_IMAGE_COLUMNS = frozenset(
    {
        "file",
        "filename",
        "filepath",
        "filepaths",
        "id",
        "image",
        "imageid",
        "imagename",
        "imagepath",
        "img",
        "imgpath",
        "name",
        "path",
        "picture",
    }
)
_LABEL_COLUMNS = frozenset(
    {
        "annotation",
        "breed",
        "category",
        "class",
        "classes",
        "classid",
        "classlabel",
        "classname",
        "diagnosis",
        "dx",
        "label",
        "labelid",
        "labelname",
        "labels",
        "species",
        "tag",
        "target",
        "targets",
        "y",
    }
)
_FIRST_LABEL_COLUMNS = ("label", "labels")
_PART_COLUMNS = frozenset(
    {
        "dataset",
        "part",
        "partition",
        "phase",
        "set",
        "split",
        "subset",
        "usage",
    }
)
_ROW_NUMBERS = frozenset({"", "index", "unnamed0"})


@dataclass(frozen=True)
class LabelTable:
    """The labels that a table gives to pictures.

    Attributes:
        name: The name of the table's file.
        columns: The columns taken, as in `SourceFindings.columns`.
        columns_unused: The other columns.
        labels: The class of each picture, by the picture's name.
        parts: The part of each picture, where the table has a column for it.
        clients: The owner of each picture, where `data.client-column` names a column;
            empty where a row has none.
        unlabelled: The pictures of rows without a label.
        left_out: Rows that are not used for other reasons, by reason.
        has_usual_label: Whether the label column has a usual name, or is named by a
            setting.
    """

    name: str
    columns: Mapping[str, str]
    columns_unused: tuple[str, ...]
    labels: Mapping[str, str]
    parts: Mapping[str, str] = field(default_factory=dict)
    clients: Mapping[str, str] = field(default_factory=dict)
    unlabelled: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    has_usual_label: bool = True


def read_label_table(
    name: str, content: bytes, pictures: PictureNames, config: DataConfig
) -> LabelTable:
    """Read the labels of pictures from a table.

    Args:
        name: The name of the table's file; paths in it may be relative to its folder.
        content: The content of the file.
        pictures: The names of all pictures.
        config: The table `[data]`: its settings of columns are obeyed.

    Raises:
        UnusableTable: It is no table, or does not label pictures for certain.
        DataError: It has several columns that could be meant, or contradicts itself.
    """
    table = parse_table(name, content)
    # A table without a header begins with a picture.
    first = TableRows(table.header, [table.header])
    if _picture_columns(first, pictures, name):
        header = tuple(f"column {number + 1}" for number in range(len(table.header)))
        table = TableRows(header, [table.header, *table.rows])
    if not table.rows:
        raise UnusableTable("it has no rows")
    named = _picture_columns(table, pictures, name)
    if not named and config.image_column in ("", *table.header):
        raise UnusableTable(_missing_pictures(table, pictures, name))
    image = _image_column(named, config.image_column, table, name)
    part = _part_column(table, set(named))
    client = config.client_column
    taken = {*named, part, client}
    others = [column for column in table.header if column not in taken]
    label = _label_column(table, others, config.label_column, name)
    used = {"image": image, "label": label} | ({"part": part} if part else {})
    if client and client in table.header:
        used["client"] = client
    return _labels(name, table, used, named[image], _is_usual(label, config))


def _picture_columns(
    table: TableRows, pictures: PictureNames, name: str
) -> dict[str, list[str | None]]:
    """Return the columns that name pictures, with the picture of each row."""
    role = part_role(base_name(name).rpartition(".")[0])
    columns = {}
    for column in table.header:
        cells = table.column(column)
        # The class 1 is no picture, although there is a 1.png.
        if len(set(cells)) <= len(cells) / 2:
            continue
        found_names = pictures.match(cells, parent(name), role)
        if found_names is not None:
            columns[column] = found_names
    return columns


def _missing_pictures(table: TableRows, pictures: PictureNames, name: str) -> str:
    """Say why no column names the pictures, of which some may be missing."""
    counts = {
        column: pictures.num_existing(table.column(column), parent(name))
        for column in table.header
        if 2 * len(set(table.column(column))) > len(table.rows)
    }
    column = max(counts, key=lambda column: counts[column], default="")
    # Of row numbers, a few are the names of pictures by chance.
    if 2 * counts.get(column, 0) <= len(table.rows):
        return "no column of it names the pictures"
    return (
        f"only {counts[column]} of {len(table.rows)} files of its column {column!r} "
        f"exist, and {MIN_MATCHED_SHARE:.0%} are needed to be sure: add the missing "
        f"files, or remove their rows"
    )


def _image_column(
    named: Mapping[str, Sequence[str | None]], setting: str, table: TableRows, name: str
) -> str:
    if setting:
        if setting in named:
            return setting
        if setting in table.header:
            raise UnusableTable(f"its column {setting!r} does not name the pictures")
        raise UnusableTable(
            f"data.image-column = {setting!r} is none of its columns, "
            f"{', '.join(table.header)}"
        )
    usual = [column for column in named if _plain(column) in _IMAGE_COLUMNS]
    unusual = [column for column in named if _plain(column) not in _ROW_NUMBERS]
    candidates = usual or unusual or list(named)
    if any(named[column] != named[candidates[0]] for column in candidates):
        raise DataError(
            f"data.image-column: the columns {', '.join(candidates)} of "
            f"{printable(name)} name different pictures: set data.image-column to one"
        )
    return candidates[0]


def _part_column(table: TableRows, named: set[str]) -> str:
    for column in table.header:
        if column not in named and _plain(column) in _PART_COLUMNS:
            values = set(table.column(column))
            if "train" in {part_role(value) for value in values} and all(values):
                return column
    return ""


def _label_column(
    table: TableRows, others: Sequence[str], setting: str, name: str
) -> str:
    if setting:
        if setting in table.header:
            return setting
        raise UnusableTable(
            f"data.label-column = {setting!r} is none of its columns, "
            f"{', '.join(table.header)}"
        )
    usual = [column for column in others if _plain(column) in _LABEL_COLUMNS]
    usual = [c for c in usual if _plain(c) in _FIRST_LABEL_COLUMNS] or usual
    rest = [column for column in others if _plain(column) not in _ROW_NUMBERS]
    candidates = usual or rest
    if len(candidates) > 1 and usual:
        candidates = _without_numbers_of_names(table, usual)
    if not candidates or (len(candidates) > 1 and not usual):
        raise UnusableTable(
            f"no column of it has a usual name of labels, it has "
            f"{', '.join(map(shortened, table.header))}: set data.label-column"
        )
    if len(candidates) > 1:
        raise DataError(
            f"data.label-column: the columns {', '.join(candidates)} of "
            f"{printable(name)} could all be the classes: set data.label-column to one"
        )
    return candidates[0]


def _without_numbers_of_names(table: TableRows, columns: Sequence[str]) -> list[str]:
    """Keep one of several columns that tell the same, preferably in words."""
    first = table.column(columns[0])
    for column in columns[1:]:
        pairs = set(zip(first, table.column(column), strict=True))
        if not len(pairs) == len(set(first)) == len({cell for _, cell in pairs}):
            return list(columns)
    worded = [c for c in columns if not all(map(_is_number, table.column(c)))]
    return [(worded or list(columns))[0]]


def _labels(
    name: str,
    table: TableRows,
    used: Mapping[str, str],
    names: Sequence[str | None],
    has_usual_label: bool,
) -> LabelTable:
    cells = _whole_numbers(table.column(used["label"]))
    parts = table.column(used["part"]) if "part" in used else None
    clients = table.column(used["client"]) if "client" in used else None
    images = table.column(used["image"])
    labels: dict[str, str] = {}
    part_of: dict[str, str] = {}
    client_of: dict[str, str] = {}
    missing, unlabelled, repeated = [], [], []
    for row, (picture, label) in enumerate(zip(names, cells, strict=True)):
        if picture is None:
            missing.append(images[row])
        elif not label:
            unlabelled.append(picture)
            if parts:
                part_of.setdefault(picture, parts[row])
        elif picture in labels:
            repeated.append(picture)
            if labels[picture] != label:
                raise DataError(
                    f"data.dataset: {printable(name)} gives {printable(picture)} "
                    f"several labels ({examples([labels[picture], label])}): one row "
                    f"for each picture is needed"
                )
        else:
            labels[picture] = label
            if parts:
                part_of[picture] = parts[row]
            if clients:
                client_of[picture] = clients[row]
    file = printable(name)
    left_out = tuple(
        LeftOut.of(f"rows of {file} {reason}", rows)
        for reason, rows in (
            ("whose file is missing", missing),
            ("that repeat a picture", repeated),
        )
        if rows
    )
    return LabelTable(
        name=name,
        columns=used,
        columns_unused=tuple(c for c in table.header if c not in used.values()),
        labels=labels,
        parts=part_of,
        clients=client_of,
        unlabelled=tuple(picture for picture in unlabelled if picture not in labels),
        left_out=left_out,
        has_usual_label=has_usual_label,
    )


def _whole_numbers(cells: Sequence[str]) -> list[str]:
    """Write 1.0 as 1; refuse measurements, which are no classes.

    Integers stay as they are: 007 is a name, and a float would change long ones.
    """
    if not all(cell == "" or _is_number(cell) for cell in cells):
        return list(cells)
    fractions = [c for c in cells if c and not _is_integer(c) and float(c) % 1]
    if fractions:
        raise UnusableTable(
            f"its labels are measurements ({examples(fractions)}), no classes"
        )
    return [c if not c or _is_integer(c) else str(int(float(c))) for c in cells]


def _is_integer(cell: str) -> bool:
    return re.fullmatch(r"-?\d+", cell) is not None


def _is_number(cell: str) -> bool:
    return (
        re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", cell, re.IGNORECASE) is not None
    )


def _is_usual(label: str, config: DataConfig) -> bool:
    return bool(config.label_column) or _plain(label) in _LABEL_COLUMNS


def _plain(column: str) -> str:
    """Return a column's name without case and punctuation."""
    return re.sub(r"[\W_]+", "", column.lower())
