"""Tables that serve a page, a paper and a program: HTML, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from instahide_fl.files import write_text
from instahide_fl.report.without_folders import without_folders

Format: TypeAlias = Callable[[Any], str]
ABSENT = "-"


@dataclass(frozen=True)
class DataTable:
    """A table of a report.

    Attributes:
        name: The name of its files.
        title: The title above it.
        caption: What a reader has to know to read it.
        frame: The values, as the CSV file has them.
        formats: The way in which people read a column; others as they are.
        numeric: The columns that are aligned to the right.
        deviations: The columns that people read behind another one, as "12.3 ± 0.4", by
            the column that they follow.
        intervals: The columns of lower and upper ends that people read behind another
            one, as "0.12 [0.10, 0.14]", by the column that they follow.
        folded: Whether a page shows it only when asked to, because it is long.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame = field(repr=False, compare=False)
    formats: Mapping[str, Format] = field(default_factory=dict)
    numeric: frozenset[str] = frozenset()
    deviations: Mapping[str, str] = field(default_factory=dict)
    intervals: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    folded: bool = False

    @property
    def columns(self) -> list[str]:
        """The headings, in the order of the columns."""
        ends = [name for pair in self.intervals.values() for name in pair]
        hidden = {*self.deviations.values(), *ends}
        return [name for name in self.frame.columns if name not in hidden]

    @property
    def rows(self) -> list[list[str]]:
        """The cells as people read them, row by row."""
        return [
            [self._cell(name, row) for name in self.columns]
            for row in self.frame.to_dict("records")
        ]

    def _cell(self, column: str, row: Mapping[str, Any]) -> str:
        value = self._format(column, row[column])
        if ends := self._ends(column, row):
            value += f" [{ends[0]}, {ends[1]}]"
        spread = self.deviations.get(column)
        if spread is None or pd.isna(row[spread]):
            return value
        return f"{value} \u00b1 {self._format(column, row[spread])}"

    def _ends(self, column: str, row: Mapping[str, Any]) -> list[str]:
        """Return the ends of an interval; nothing where there is none."""
        ends = [row[name] for name in self.intervals.get(column, ())]
        return [] if any(pd.isna(ends)) else [self._format(column, end) for end in ends]

    def _format(self, column: str, value: Any) -> str:
        if value is None or (not isinstance(value, str) and pd.isna(value)):
            return ABSENT
        if column in self.formats:
            return self.formats[column](value)
        return without_folders(str(value))

    def latex(self) -> str:
        """Return the table for the LaTeX package booktabs."""
        shown = pd.DataFrame(self.rows, columns=self.columns)
        alignment = "".join(
            "r" if name in self.numeric else "l" for name in self.columns
        )
        styler = shown.map(_latex).rename(columns=_latex).style.hide(axis="index")
        return str(
            styler.to_latex(
                hrules=True,
                column_format=alignment,
                caption=_latex(self.title),
                label=f"tab:{self.name}",
                position_float="centering",
            )
        )

    def save(self, folder: Path) -> None:
        """Write NAME.csv and NAME.tex.

        Raises:
            OutputError: the files cannot be written.
        """
        shown = self.frame.map(
            lambda value: without_folders(value) if isinstance(value, str) else value
        )
        write_text(folder / f"{self.name}.csv", shown.to_csv(index=False))
        write_text(folder / f"{self.name}.tex", self.latex())


def percent(value: float) -> str:
    """Write a share as 12.3%."""
    return f"{value:.1%}"


def count(value: float) -> str:
    """Write a number as 1,234."""
    return f"{value:,.0f}"


def two_decimals(value: float) -> str:
    """Write 0.12."""
    return f"{value:.2f}"


def mebibytes(value: float) -> str:
    """Write a number of bytes as 1.2 MiB."""
    return f"{value / 2**20:.1f} MiB"


def seconds(value: float) -> str:
    """Write 1.2 s."""
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _latex(text: object) -> str:
    escaped = str(text).replace("\\", r"\textbackslash ")
    for character in "&%$#_{}":
        escaped = escaped.replace(character, "\\" + character)
    return escaped.replace("\u00b1", r"$\pm$")
