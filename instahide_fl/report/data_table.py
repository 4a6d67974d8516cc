"""Tables that serve a page, a paper and a program: HTML, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from instahide_fl.files import write_text

Format: TypeAlias = Callable[[Any], str]
ABSENT = "-"


@dataclass(frozen=True)
class DataTable:
    """A table of a report.

    Attributes:
        name: of its files.
        title: above it.
        caption: what one should know to read it.
        frame: values; those of the CSV file.
        formats: how columns are written for people; others as they are.
        numeric: columns that are aligned to the right.
        lead: the first so many columns name the row.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame = field(repr=False, compare=False)
    formats: Mapping[str, Format] = field(default_factory=dict)
    numeric: frozenset[str] = frozenset()
    lead: int = 1

    @property
    def columns(self) -> list[str]:
        """Headings."""
        return list(self.frame.columns)

    @property
    def rows(self) -> list[list[str]]:
        """Cells as people read them."""
        return [
            [
                self._cell(name, value)
                for name, value in zip(self.columns, row, strict=True)
            ]
            for row in self.frame.itertuples(index=False)
        ]

    def _cell(self, column: str, value: Any) -> str:
        if value is None or (not isinstance(value, str | list) and pd.isna(value)):
            return ABSENT
        return self.formats[column](value) if column in self.formats else str(value)

    def latex(self) -> str:
        """Return the table for the LaTeX package booktabs."""
        shown = pd.DataFrame(self.rows, columns=self.columns)
        places = "".join("r" if name in self.numeric else "l" for name in self.columns)
        styler = shown.map(_latex).rename(columns=_latex).style.hide(axis="index")
        return str(
            styler.to_latex(
                hrules=True,
                column_format=places,
                caption=_latex(self.title),
                label=f"tab:{self.name}",
                position_float="centering",
            )
        )

    def save(self, folder: Path) -> None:
        """Write NAME.csv and NAME.tex.

        Raises:
            OutputError: they cannot be written.
        """
        write_text(folder / f"{self.name}.csv", self.frame.to_csv(index=False))
        write_text(folder / f"{self.name}.tex", self.latex())


def percent(value: float) -> str:
    """Write a share as 12.3%."""
    return f"{value:.1%}"


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
