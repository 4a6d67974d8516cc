"""A report as a single HTML file that needs nothing else, and the files beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from instahide_fl import __version__
from instahide_fl.files import write_text
from instahide_fl.report.data_table import DataTable
from instahide_fl.report.drawing import Drawing
from instahide_fl.report.without_folders import without_folders

TEMPLATE = "report.html.j2"
STYLE = "report.css"
CONTENTS = "contents.txt"  # lists the files beside the page that belong to it


@dataclass(frozen=True)
class Picture:
    """A picture that is in a PNG file already.

    Attributes:
        path: The PNG file.
        caption: The text below it.
    """

    path: Path
    caption: str

    @property
    def encoded(self) -> Markup:
        """The file's bytes in base64, for a data: address."""
        return Markup(base64.b64encode(self.path.read_bytes()).decode("ascii"))


@dataclass(frozen=True)
class Card:
    """A few facts about one thing.

    Attributes:
        title: The name of the thing.
        facts: The term and the text of each fact.
    """

    title: str
    facts: Sequence[tuple[str, str]]


Item: TypeAlias = Drawing | DataTable | Picture | Card


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        name: The anchor in the page.
        title: The heading.
        paragraphs: The text below the heading.
        items: The figures, tables, pictures and cards, in this order.
    """

    name: str
    title: str
    paragraphs: Sequence[str] = ()
    items: Sequence[Item] = ()

    @property
    def cards(self) -> list[Card]:
        """The section's cards, which stand side by side."""
        return [item for item in self.items if isinstance(item, Card)]

    def __bool__(self) -> bool:
        return bool(self.paragraphs or self.items)


@dataclass(frozen=True)
class Report:
    """The content of a page.

    Attributes:
        title: The title of the page.
        question: The question that it answers; may be empty.
        verdict: The method and the text of each line; no method for what concerns all.
        warning: The text that must be read before any figure.
        sections: The sections; the page skips those with nothing in them.
        command: The command that makes the page again.
    """

    title: str
    question: str
    verdict: Sequence[tuple[str, str]]
    warning: str
    sections: Sequence[Section] = field(default_factory=tuple)
    command: str = ""

    @property
    def shown(self) -> list[Section]:
        """The sections that hold something."""
        return [section for section in self.sections if section]

    def drawings(self) -> Iterator[Drawing]:
        """Yield all figures."""
        for section in self.sections:
            yield from (item for item in section.items if isinstance(item, Drawing))

    def tables(self) -> Iterator[DataTable]:
        """Yield all tables."""
        for section in self.sections:
            yield from (item for item in section.items if isinstance(item, DataTable))


def render(report: Report) -> str:
    """Return the HTML page of a report."""
    environment = Environment(
        loader=PackageLoader("instahide_fl.report"),
        autoescape=select_autoescape(enabled_extensions=("j2",)),
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["drawing"] = lambda item: isinstance(item, Drawing)
    environment.tests["table"] = lambda item: isinstance(item, DataTable)
    environment.tests["picture"] = lambda item: isinstance(item, Picture)
    environment.filters["svg"] = lambda drawing: Markup(drawing.svg())
    style, _, _ = environment.loader.get_source(environment, STYLE)  # type: ignore[union-attr]
    return environment.get_template(TEMPLATE).render(
        report=report, style=Markup(style), version=__version__
    )


def _shown(value: object) -> object:
    """Return what a template prints in place of a value: no text names a folder."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return without_folders(value)
    return value


def save_report(report: Report, page: Path, folder: Path | None) -> None:
    """Write the page, and every figure and table beside it.

    Args:
        report: The report to write.
        page: The HTML file; written last.
        folder: The folder for PNG, CSV and LaTeX files; None writes none.

    Raises:
        OutputError: a file cannot be written.
    """
    if folder is not None:
        _save_parts(report, folder)
    write_text(page, render(report))


def _save_parts(report: Report, folder: Path) -> None:
    """Write figures and tables, and remove those of an earlier report.

    CONTENTS names what belongs to the report: nothing else in the folder is touched.
    """
    names: set[str] = set()
    for drawing in report.drawings():
        drawing.save_png(folder / f"{drawing.name}.png")
        names.add(f"{drawing.name}.png")
    for table in report.tables():
        table.save(folder)
        names |= {f"{table.name}.csv", f"{table.name}.tex"}
    contents = folder / CONTENTS
    if contents.is_file():
        for name in set(contents.read_text(encoding="utf-8").split()) - names:
            # A name alone: what the file says must not lead out of the folder.
            (folder / Path(name).name).unlink(missing_ok=True)
    write_text(contents, "\n".join(sorted(names)) + "\n")
