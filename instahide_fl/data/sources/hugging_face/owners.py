"""Numbers the owners of images: writers, patients, devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instahide_fl.data.data_report import DataWarning
from instahide_fl.data.sources.hugging_face.column_kinds import (
    class_names,
    is_binary,
    storage_type,
)
from instahide_fl.data.sources.hugging_face.tables import Table, some_columns
from instahide_fl.data.sources.label_names import (
    alike_names_warnings,
    clean_value,
)
from instahide_fl.errors import DataError


@dataclass(frozen=True)
class Owners:
    """Whose the images of a part are.

    Attributes:
        ids: i64[N], the number of each image's owner; None if unknown.
        warnings: What the user should look at.
    """

    ids: np.ndarray[Any, np.dtype[np.int64]] | None = None
    warnings: tuple[DataWarning, ...] = ()


def read_owners(title: str, tables: Sequence[Table], column: str) -> Owners:
    """Number the distinct values of a column in their sorted order.

    Args:
        title: The name of the part, for messages.
        tables: The tables of the part, in order.
        column: The column that names the owner of each image.

    Raises:
        DataError: There is no such column, it holds neither names nor numbers, or some
            images have no owner.
    """
    values: list[Any] = []
    for table in tables:
        _check_type(table, column)
        values += map(clean_value, _read_table(table, column))
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise DataError(
            f"data.client-column: {len(missing)} of {len(values)} rows of {title} have "
            f"no {column!r} (empty, or no number), the first is row {missing[0]}: fill "
            f"them in, or remove these rows"
        )
    try:
        owners = sorted(set(values))
    except TypeError:
        raise DataError(
            f"data.client-column: {column!r} of {title} holds names in some files and "
            f"numbers in others: cast them to one type"
        ) from None
    numbers = {owner: number for number, owner in enumerate(owners)}
    ids = np.array([numbers[value] for value in values], dtype=np.int64)
    return Owners(ids, tuple(alike_names_warnings("data.client-column", owners)))


def _read_table(table: Table, column: str) -> list[Any]:
    values: list[Any] = table.read_column(column).to_pylist()
    if class_names(table, column) is None:
        return values
    return [None if value == -1 else value for value in values]


def _check_type(table: Table, column: str) -> None:
    import pyarrow as pa

    if column not in table.schema.names:
        raise DataError(
            f"data.client-column: {table.title} has no column {column!r}, only "
            f"{some_columns(table.schema.names)}"
        )
    column_type = storage_type(table.schema.field(column).type)
    if pa.types.is_nested(column_type) or is_binary(column_type):
        raise DataError(
            f"data.client-column: {column!r} of {table.title} holds no names or "
            f"numbers, but {column_type}"
        )
