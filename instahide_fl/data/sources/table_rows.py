"""Reads the files of tables as rows of text, whatever program wrote them."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from instahide_fl.data.sources.label_names import clean_value


class UnusableTable(ValueError):
    """A table that labels no pictures; the text says why, as a phrase."""


@dataclass(frozen=True)
class TableRows:
    """A table as text.

    Attributes:
        header: The names of the columns.
        rows: The cells, all rows of the same length.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column.

        Args:
            name: The name of the column, which is in the header.
        """
        number = self.header.index(name)
        return [row[number] for row in self.rows]


def parse_table(name: str, content: bytes) -> TableRows:
    """Read a table as text: CSV with any usual delimiter, or JSON lines.

    Args:
        name: The name of the table's file, whose suffix tells the format.
        content: The content of the file.

    Raises:
        UnusableTable: It is no table.
    """
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
    try:
        return _parse_json(text) if name.endswith(".jsonl") else _parse_csv(text)
    except UnusableTable:
        raise
    # Of numbers or brackets without end, too.
    except (csv.Error, ValueError, RecursionError) as error:
        raise UnusableTable(f"it cannot be read ({error})") from None


def _parse_csv(text: str) -> TableRows:
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    if delimiter not in first:
        raise UnusableTable("its first line has no comma, semicolon or tab")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = [list(map(_cell, row)) for row in reader if any(row)]
    if not rows:
        raise UnusableTable("it has no rows")
    header, width = rows[0], len(rows[0])
    if len(set(header)) < width:
        header = [f"{cell} ({i + 1})" if i else cell for i, cell in enumerate(header)]
    cells = [tuple((row + [""] * width)[:width]) for row in rows[1:]]
    return TableRows(tuple(header), cells)


def _parse_json(text: str) -> TableRows:
    objects = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not objects or not all(isinstance(row, dict) for row in objects):
        raise UnusableTable("its lines are no JSON objects")
    keys = dict.fromkeys(key for row in objects for key in row)
    header = tuple(key for key in keys if not any(_is_nested(r, key) for r in objects))
    rows = [tuple(_cell(row.get(key)) for key in header) for row in objects]
    return TableRows(header, rows)


def _is_nested(row: Mapping[str, object], key: str) -> bool:
    """Return whether a field holds several values, such as boxes of objects."""
    value = row.get(key)
    return isinstance(value, dict) or (isinstance(value, list) and len(value) != 1)


def _cell(value: object) -> str:
    if isinstance(value, list):  # of one value: see _is_nested
        return _cell(value[0])
    return "" if value is None else clean_value(str(value)) or ""
