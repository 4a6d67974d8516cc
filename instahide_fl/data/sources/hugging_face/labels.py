"""Reads the classes of rows, and gives them the same numbers in all parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from instahide_fl.data.data_report import DataWarning, examples
from instahide_fl.data.sources.hugging_face.column_kinds import (
    class_names,
    is_list,
    label_kind,
    storage_type,
)
from instahide_fl.data.sources.hugging_face.tables import Table
from instahide_fl.data.sources.label_names import (
    alike_names_warnings,
    clean_value,
)
from instahide_fl.errors import DataError

Targets: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

NO_LABEL = -1
MAX_DISTINCT_ROWS = 10  # of a set of which each row may have a class of its own


@dataclass(frozen=True)
class PartLabels:
    """The classes of the rows of a part, or of one of its files.

    Attributes:
        title: The name of the part or file, for messages.
        codes: i64[N], numbers into `classes`, `NO_LABEL` where a row has none.
        classes: The classes: declared names, texts, or whole numbers in their order.
        is_declared: Whether the file declares the names of the classes.
    """

    title: str
    codes: Targets
    classes: tuple[str | int, ...]
    is_declared: bool

    @property
    def has_labels(self) -> bool:
        """Whether any row has a label."""
        return bool((self.codes != NO_LABEL).any())


def read_labels(title: str, tables: Sequence[Table], column: str) -> PartLabels:
    """Read the classes of a part's rows.

    Args:
        title: The name of the part, for messages.
        tables: The tables of the part, in order.
        column: The column with the classes; rows of tables without it have no label.

    Raises:
        DataError: The values are no classes, or the tables declare different classes.
    """
    filled = [table for table in tables if table.num_rows]
    pieces = [_read_table(table, column) for table in filled]
    labelled = [piece for piece in pieces if piece.has_labels] or pieces
    if not labelled:
        return PartLabels(title, np.zeros(0, np.int64), (), False)
    if any(piece.is_declared for piece in labelled):
        classes = labelled[0].classes
    else:
        union = {entry for piece in labelled for entry in piece.classes}
        classes = _in_order(title, union)
    joined = PartLabels(title, np.zeros(0, np.int64), classes, labelled[0].is_declared)
    codes = [
        renumber(piece, joined) if piece.has_labels else piece.codes for piece in pieces
    ]
    return PartLabels(title, np.concatenate(codes), classes, joined.is_declared)


def renumber(labels: PartLabels, reference: PartLabels) -> Targets:
    """Return the numbers of a part's classes among those of another, by their names.

    Args:
        labels: The classes to number.
        reference: The part whose numbers are taken.

    Returns:
        i64[N], `NO_LABEL` where a row has no label.

    Raises:
        DataError: A class is not among those of the reference.
    """
    numbers = {str(name): number for number, name in enumerate(reference.classes)}
    unknown = [str(name) for name in labels.classes if str(name) not in numbers]
    if unknown:
        raise DataError(
            f"data.label-column: {labels.title} has classes that {reference.title} "
            f"has not: {examples(unknown)}, beside {examples(list(numbers))}: write "
            f"the same classes in all files, or choose another part or column"
        )
    # The last entry is what NO_LABEL, -1, picks.
    lookup = [*(numbers[str(name)] for name in labels.classes), NO_LABEL]
    return np.array(lookup, dtype=np.int64)[labels.codes]


def without_minus_one(labels: PartLabels, reference: PartLabels | None) -> PartLabels:
    """Take rows whose class is the number -1 for rows without a label.

    Args:
        labels: The classes of a part. Those of declared names are returned as they are.
        reference: The part to train on, whose classes tell whether -1 is a class; None
            if it is this part. Of its own classes, -1 is one if the other is 1.
    """
    classes = (labels if reference is None else reference).classes
    is_class = -1 in classes if reference else classes == (-1, 1)
    if labels.is_declared or -1 not in labels.classes or is_class:
        return labels
    missing = labels.classes.index(-1)
    remaining = tuple(name for name in labels.classes if name != -1)
    # Codes behind the class that goes move up by one.
    codes = labels.codes - (labels.codes > missing)
    codes[labels.codes == missing] = NO_LABEL
    return replace(labels, codes=codes, classes=remaining)


def require_labels(labels: PartLabels) -> None:
    """Refuse a part of which rows have no label.

    Raises:
        DataError: Some rows have none.
    """
    missing = np.flatnonzero(labels.codes == NO_LABEL)
    if len(missing):
        raise DataError(
            f"data.dataset: row {missing[0]} of {labels.title} has no label, "
            f"{len(missing)} of {len(labels.codes)} rows have none (empty or -1): "
            f"remove these rows, or label them"
        )


def require_classes(labels: PartLabels, column: str) -> None:
    """Refuse values that are no classes: all alike, or all different.

    Args:
        labels: The labels of the part to train on.
        column: The column that they come from.

    Raises:
        DataError: The part has a single class, or a class for each row.
    """
    count = len(labels.classes)
    if count < 2:
        raise DataError(
            f"data.label-column: {column!r} of {labels.title} holds one class only, "
            f"{examples(list(map(str, labels.classes)))}: choose a column with two or "
            f"more"
        )
    rows = len(labels.codes)
    if count == rows > MAX_DISTINCT_ROWS and not labels.is_declared:
        raise DataError(
            f"data.label-column: {column!r} of {labels.title} holds {count} different "
            f"values in {rows} rows, which are no classes: choose another column"
        )


def class_warnings(
    train: PartLabels, test_targets: Targets | None
) -> list[DataWarning]:
    """Warn about classes without images, and about those whose names are alike.

    Args:
        train: The labels of the part to train on.
        test_targets: i64[N], classes of the part to test on, None without one.
    """
    warnings = alike_names_warnings("data.label-column", train.classes)
    count = len(train.classes)
    trained = np.bincount(train.codes, minlength=count) > 0
    tested = np.zeros(count, bool)
    if test_targets is not None:
        tested = np.bincount(test_targets, minlength=count) > 0
    unused = [str(train.classes[k]) for k in np.flatnonzero(~trained & ~tested)]
    if unused:
        warnings.append(
            DataWarning(
                f"{len(unused)} of {count} classes have no image: {examples(unused)}",
                "declare only the classes that occur, if a model of fewer outputs is "
                "meant",
            )
        )
    untrained = [str(train.classes[k]) for k in np.flatnonzero(~trained & tested)]
    if untrained:
        warnings.append(
            DataWarning(
                f"{len(untrained)} of {count} classes have test images and no training "
                f"image: {examples(untrained)}",
                "add training images of them, or remove the test images",
            )
        )
    return warnings


def _read_table(table: Table, column: str) -> PartLabels:
    title = table.title
    if column not in table.schema.names:
        return PartLabels(title, np.full(table.num_rows, NO_LABEL), (), False)
    kind = label_kind(table, column)
    if kind is None:
        raise DataError(
            f"data.label-column: {column!r} of {title} holds no classes but "
            f"{table.schema.field(column).type}: store whole numbers or names"
        )
    values = table.read_column(column).to_pylist()
    if is_list(storage_type(table.schema.field(column).type)):
        values = _single_items(title, column, values)
    names = class_names(table, column)
    if names is not None:
        return _declared(title, column, values, names)
    if kind == "float":
        values = _whole_numbers(title, column, values)
    elif kind == "boolean":
        values = [None if value is None else str(value) for value in values]
    cleaned = [clean_value(value) for value in values]
    classes = _in_order(title, {value for value in cleaned if value is not None})
    numbers: dict[Any, int] = {name: number for number, name in enumerate(classes)}
    codes = [numbers.get(value, NO_LABEL) for value in cleaned]
    return PartLabels(title, np.array(codes, np.int64), classes, False)


def _declared(
    title: str, column: str, values: list[Any], names: list[str]
) -> PartLabels:
    codes = np.array([NO_LABEL if v is None else v for v in values], dtype=np.int64)
    is_wrong = (codes < NO_LABEL) | (codes >= len(names))
    if is_wrong.any():
        row = np.flatnonzero(is_wrong)[0]
        raise DataError(
            f"data.label-column: row {row} of {column!r} of {title} holds "
            f"{codes[row]}, which is none of the {len(names)} classes: mend the file"
        )
    return PartLabels(title, codes, tuple(names), True)


def _single_items(title: str, column: str, values: list[Any]) -> list[Any]:
    """Return the items of lists of one item each."""
    for row, value in enumerate(values):
        if value is not None and len(value) > 1:
            raise DataError(
                f"data.label-column: row {row} of {column!r} of {title} has "
                f"{len(value)} labels; an image can have one class only: choose "
                f"another column, or keep the rows with one label"
            )
    return [value[0] if value else None for value in values]


def _whole_numbers(title: str, column: str, values: list[Any]) -> list[int | None]:
    """Return numbers with a point that are surely classes as whole numbers."""
    present = [value for value in values if clean_value(value) is not None]
    are_whole = all(math.isfinite(v) and v == int(v) for v in present)
    is_repeated = 2 * len(set(present)) <= len(present) or (
        len(present) <= MAX_DISTINCT_ROWS
    )
    if not (are_whole and is_repeated):
        raise DataError(
            f"data.label-column: {column!r} of {title} holds numbers with a point, "
            f"which are no classes: if they are whole, cast them: "
            f"dataset.cast_column({column!r}, datasets.Value('int64'))"
        )
    return [None if clean_value(value) is None else int(value) for value in values]


def _in_order(title: str, classes: set[Any]) -> tuple[str | int, ...]:
    if len({type(name) for name in classes}) > 1:
        raise DataError(
            f"data.label-column: some files of {title} hold numbers and others names: "
            f"cast them to one type"
        )
    return tuple(sorted(classes))
