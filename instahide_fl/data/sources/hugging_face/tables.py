"""Opens the files of tables (parquet, arrow, json, csv), without reading the rows."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from instahide_fl.data.sources.base import BLOCK_IMAGES
from instahide_fl.data.sources.hugging_face.part_files import table_kind
from instahide_fl.errors import DataError
from instahide_fl.terminal import shortened

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_ARROW_FILE = b"ARROW1"  # how a file of Arrow's file format begins
CSV_DELIMITERS = (",", ";", "\t")
MAX_LISTED = 20  # columns that a message names
MAX_BATCH_ROWS = 2**16  # of a column without pictures that are decoded at once
_POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched


class ColumnReader(Protocol):
    """Reads a column some rows at a time, fastest from front to back."""

    def read(self, start: int, stop: int) -> pa.Array:
        """Return the values of the rows start, ..., stop-1."""

    def close(self) -> None:
        """Close the file; it may be read again afterwards."""


@dataclass(frozen=True)
class Table:
    """A file of rows, or several that one description covers.

    Attributes:
        title: The name of the file, for messages.
        folder: The folder that relative paths of pictures start from.
        num_rows: The number of rows.
        schema: The Arrow types of the columns.
        features: The types of the columns as the `datasets` library declares them;
            empty if the file was written by another library.
        open_column: A function that opens a column by its name.
    """

    title: str
    folder: Path
    num_rows: int
    schema: pa.Schema
    features: Mapping[str, Any]
    open_column: Callable[[str], ColumnReader]

    def read_column(self, name: str) -> pa.Array:
        """Read all values of a column that holds no pictures."""
        reader = self.open_column(name)
        try:
            return reader.read(0, self.num_rows)
        finally:
            reader.close()


def open_table(path: Path, title: str) -> Table:
    """Open a table file.

    Args:
        path: The file.
        title: Its name, for messages.

    Raises:
        DataError: It is damaged.
    """
    readers = {
        "parquet": _open_parquet,
        "arrow": _open_arrow,
        "json": _open_json,
        "csv": _open_csv,
    }
    with _explained(path):
        table = readers[table_kind(path.name)](path, title)
    names = table.schema.names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"data.dataset: {path} has several columns called "
            f"{some_columns(repeated)}: rename all but one"
        )
    return table


def some_columns(names: Sequence[str]) -> str:
    """List the names of columns, the first ones of many."""
    further = f", ... ({len(names)})" if len(names) > MAX_LISTED else ""
    return ", ".join(map(shortened, names[:MAX_LISTED])) + further


def table_of_dataset(dataset: Dataset, path: Path, title: str) -> Table:
    """Return a data set that the `datasets` library has mapped into memory.

    Args:
        dataset: The data set.
        path: The file or folder that it was read from.
        title: Its name, for messages.
    """
    return Table(
        title=title,
        folder=path if path.is_dir() else path.parent,
        num_rows=len(dataset),
        schema=dataset.data.schema,
        features=dataset.features,
        open_column=lambda name: _DatasetColumn(dataset, path, name),
    )


class _ParquetColumn:
    """Reads a column page by page, so that a large row group is never in memory."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._file: Any = None
        self._group_starts: list[int] = []
        self._batches: Iterator[Any] = iter(())
        self._buffer: Any = ()  # rows that were decoded and not taken yet
        self._next_row = 0  # the number of the first row of the buffer

    def read(self, start: int, stop: int) -> pa.Array:
        import pyarrow as pa

        if start == stop:
            return pa.nulls(0)
        with _explained(self._path):
            self._go_to(start, batch_rows=min(stop - start, MAX_BATCH_ROWS))
            while self._next_row < start:
                self._take(start - self._next_row)
            pieces = []
            while self._next_row < stop:
                pieces.append(self._take(stop - self._next_row))
            return pa.concat_arrays(pieces)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._batches, self._buffer = None, iter(()), ()

    def _take(self, max_rows: int) -> pa.Array:
        """Return the next rows, at most some, and go on behind them."""
        if not len(self._buffer):
            self._buffer = next(self._batches).column(self._name)
        rows = self._buffer[:max_rows]
        self._buffer = self._buffer[max_rows:]
        self._next_row += len(rows)
        return rows

    def _go_to(self, row: int, batch_rows: int) -> None:
        """Go to the row group that holds a row, unless it is ahead in the open one."""
        if self._file is None:
            self._open()
        group = bisect.bisect_right(self._group_starts, row) - 1
        first = self._group_starts[group]
        if first <= self._next_row <= row:
            return
        self._next_row, self._buffer = first, ()
        self._batches = self._file.iter_batches(
            max(batch_rows, BLOCK_IMAGES),
            row_groups=range(group, len(self._group_starts)),
            columns=[self._name],
            use_threads=False,
        )

    def _open(self) -> None:
        import pyarrow.parquet as pq

        # Otherwise whole row groups, of gigabytes, would be read at once.
        self._file = pq.ParquetFile(self._path, pre_buffer=False, buffer_size=2**20)
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._group_starts = [0, *itertools.accumulate(sizes)][:-1]
        self._next_row = metadata.num_rows  # behind the end: _go_to has to choose


class _DatasetColumn:
    """Reads a column of a data set that is mapped into memory."""

    def __init__(self, dataset: Dataset, path: Path, name: str) -> None:
        self._rows = dataset.select_columns([name]).with_format("arrow")
        self._path = path
        self._name = name

    def read(self, start: int, stop: int) -> pa.Array:
        with _explained(self._path):
            return self._rows[start:stop].column(self._name).combine_chunks()

    def close(self) -> None:
        """Do nothing: mapped memory costs nothing."""


class _MemoryColumn:
    """Reads a column of a table in memory, or mapped into it."""

    def __init__(self, rows: pa.Table, name: str) -> None:
        self._column = rows.column(name)

    def read(self, start: int, stop: int) -> pa.Array:
        return self._column.slice(start, stop - start).combine_chunks()

    def close(self) -> None:
        """Do nothing: nothing is open."""


def _open_parquet(path: Path, title: str) -> Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        num_rows = file.metadata.num_rows
    return Table(
        title=title,
        folder=path.parent,
        num_rows=num_rows,
        schema=schema,
        features=_declared_features(schema),
        open_column=lambda name: _ParquetColumn(path, name),
    )


def _declared_features(schema: pa.Schema) -> Mapping[str, Any]:
    """Return the types that the `datasets` library wrote beside the columns."""
    import datasets

    description = (schema.metadata or {}).get(b"huggingface")
    features = description and json.loads(description).get("info", {}).get("features")
    return datasets.Features.from_dict(features) if features else {}


def _open_arrow(path: Path, title: str) -> Table:
    """Map a file of Arrow's stream or file format into memory."""
    import pyarrow as pa

    mapped = pa.memory_map(str(path))
    is_file_format = mapped.read(len(_ARROW_FILE)) == _ARROW_FILE
    mapped.seek(0)
    ipc = pa.ipc
    open_rows = ipc.open_file if is_file_format else ipc.open_stream
    return _table_in_memory(open_rows(mapped).read_all(), path, title)


def _open_json(path: Path, title: str) -> Table:
    """Read a list of objects, or an object on each line."""
    import pyarrow as pa
    import pyarrow.json

    with path.open(encoding="utf-8") as file:
        is_list = file.read(1024).lstrip().startswith("[")
        file.seek(0)
        rows = pa.Table.from_pylist(json.load(file)) if is_list else None
    if rows is None:
        rows = pyarrow.json.read_json(path)
    return _table_in_memory(rows, path, title)


def _open_csv(path: Path, title: str) -> Table:
    import pyarrow.csv

    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline()
    options = pyarrow.csv.ParseOptions(
        delimiter=max(CSV_DELIMITERS, key=header.count), newlines_in_values=True
    )
    return _table_in_memory(
        pyarrow.csv.read_csv(path, parse_options=options), path, title
    )


def _table_in_memory(rows: pa.Table, path: Path, title: str) -> Table:
    return Table(
        title=title,
        folder=path.parent,
        num_rows=rows.num_rows,
        schema=rows.schema,
        features=_declared_features(rows.schema),
        open_column=lambda name: _MemoryColumn(rows, name),
    )


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the errors of damaged files into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the decoders raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "repair it or download it anew"
        if _is_pointer(path):
            reason, remedy = (
                "a pointer of Git LFS",
                "fetch its content with git lfs pull",
            )
        raise DataError(
            f"data.dataset: {path} cannot be read ({reason}): {remedy}"
        ) from None


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False
