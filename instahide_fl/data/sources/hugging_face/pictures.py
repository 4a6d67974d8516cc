"""Fetches the pictures of a column, some rows at a time."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instahide_fl.data.sources.base import BLOCK_IMAGES, StoredPicture, StoredPictures
from instahide_fl.data.sources.hugging_face.column_kinds import (
    array_depth,
    is_picture_shape,
)
from instahide_fl.data.sources.hugging_face.tables import (
    ColumnReader,
    Table,
    some_columns,
)
from instahide_fl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def stored_pictures(title: str, tables: Sequence[Table], column: str) -> StoredPictures:
    """Return the pictures of a part, which are read when they are fetched.

    Args:
        title: The name of the part, for messages.
        tables: The tables of the part, in order.
        column: The column with the pictures.

    Raises:
        DataError: A table's column holds no pictures.
    """
    filled = [table for table in tables if table.num_rows]
    for table in filled:
        if column not in table.schema.names:
            raise DataError(
                f"data.image-column: {table.title} has no column {column!r}, only "
                f"{some_columns(table.schema.names)}: store it in each file"
            )
    column_pictures = _ColumnPictures(title, filled, column)
    return StoredPictures(
        title=title,
        count=sum(table.num_rows for table in filled),
        fetch=column_pictures.fetch,
        name=lambda number: f"row {number}",
    )


class _ColumnPictures:
    """The pictures of the same column of several tables, one of them open at a time."""

    def __init__(self, title: str, tables: Sequence[Table], column: str) -> None:
        self._title = title
        self._tables = tables
        self._column = column
        sizes = [table.num_rows for table in tables]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._open_table = -1
        self._reader: ColumnReader | None = None

    def fetch(self, start: int, stop: int) -> list[StoredPicture]:
        """Return the pictures start, ..., stop-1."""
        pictures: list[StoredPicture] = []
        while start < stop:
            index = bisect.bisect_right(self._starts, start) - 1
            table_stop = min(stop, self._starts[index + 1])
            for row, picture in enumerate(self._of_table(index, start, table_stop)):
                if picture is None:
                    raise self._no_picture(start + row)
                pictures.append(picture)
            start = table_stop
        return pictures

    def _of_table(
        self, index: int, start: int, stop: int
    ) -> Iterator[StoredPicture | None]:
        if self._reader is None or index != self._open_table:
            if self._reader is not None:
                self._reader.close()
            self._reader = self._tables[index].open_column(self._column)
            self._open_table = index
        first = self._starts[index]
        values = self._reader.read(start - first, stop - first)
        table = self._tables[index]
        if array_depth(values.type) is not None:
            return _arrays(values, self._title, start)
        return (_stored(value, table.folder) for value in values.to_pylist())

    def _no_picture(self, first_row: int) -> DataError:
        """Say how many rows lack a picture, the first of which was met."""
        total = self._starts[-1]
        count = 0
        for index in range(len(self._tables)):
            start, stop = self._starts[index], self._starts[index + 1]
            for block in range(start, stop, BLOCK_IMAGES):
                block_stop = min(block + BLOCK_IMAGES, stop)
                pictures = self._of_table(index, block, block_stop)
                count += sum(picture is None for picture in pictures)
        return DataError(
            f"data.dataset: row {first_row} of {self._title} has no picture, {count} "
            f"of {total} rows have none: remove these rows"
        )


def _stored(value: Any, folder: Path) -> StoredPicture | None:
    """Return the picture of a struct of bytes and path, of bytes or of a path."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        return None
    if isinstance(value, bytes):
        return value
    return folder / str(value)  # an absolute path stays as it is


def _arrays(values: pa.Array, title: str, first_row: int) -> Iterator[Any]:
    """Return the pixels of nested lists as arrays [H,W] or [H,W,3], None if missing."""
    depth = array_depth(values.type) or 0
    if hasattr(values, "storage"):
        values = values.storage
    for row in range(len(values)):
        if not values[row].is_valid:
            yield None
            continue
        pixels = _dense(values[row : row + 1], depth)
        if pixels is None or not is_picture_shape(pixels.shape):
            raise DataError(
                f"data.dataset: row {first_row + row} of {title} is no picture of the "
                f"shape [H,W], [H,W,3] or [3,H,W]: mend or remove it"
            )
        yield _channels_last(pixels)


def _dense(values: pa.Array, depth: int) -> np.ndarray[Any, Any] | None:
    """Return nested lists as an array, None if they are ragged or have gaps."""
    import pyarrow.compute as pc

    shape = []
    for _ in range(depth):
        lengths = set(pc.list_value_length(values).to_pylist())
        if len(lengths) != 1 or None in lengths:
            return None
        shape.append(lengths.pop())
        values = values.flatten()
    if values.null_count:
        return None
    flat: np.ndarray[Any, Any] = values.to_numpy(zero_copy_only=False)
    return flat.reshape(shape)


def _channels_last(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return [H,W,3], or [H,W] of a grey picture."""
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)  # [C,H,W] -> [H,W,C]
    is_grey = pixels.ndim == 3 and pixels.shape[2] == 1
    return pixels[:, :, 0] if is_grey else pixels  # [H,W,1] -> [H,W]
