"""Figures that serve a page and a paper: SVG that follows the page's colours, and PNG.

Both come from one Matplotlib figure. Ink is drawn in placeholder colours that the SVG
leaves to the page, so that light, dark and printed pages are all legible.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from instahide_fl.files import atomic_file

LETTER = 0.085  # inches that a letter of a legend takes
DPI = 200  # of the PNG files
INK = "#1b1f24"
FAINT = "#8a9099"
PAPER = "#fefefe"
COLOURS = (
    "#2f7ed8",
    "#d9622b",
    "#1f9e77",
    "#c0549b",
    "#b58900",
    "#7a6fd0",
    "#3aa6b9",
    "#8c6d5a",
)
"""The colours of methods. They differ in common kinds of colour blindness, on white and
on black."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""The markers of methods: colour alone would not do in print."""
LINES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (5, 2, 1, 2)),
    (0, (9, 3)),
)

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAPER,
    "grid.color": FAINT,
    "grid.alpha": 0.28,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",
}
_TIP = "tip:"


@dataclass(frozen=True)
class Drawing:
    """A figure of a report.

    Attributes:
        name: The name of its files.
        title: The title above it.
        caption: What a reader has to know to read it.
        alternative: What it shows, in words, for those who do not see it.
        figure: The Matplotlib figure.
    """

    name: str
    title: str
    caption: str
    alternative: str
    figure: Figure = field(repr=False, compare=False)

    def save_png(self, path: Path) -> None:
        """Write the PNG file.

        Raises:
            OutputError: the file cannot be written.
        """
        with _style(), atomic_file(path) as temporary:
            self.figure.savefig(temporary, format="png", dpi=DPI)

    def svg(self) -> str:
        """Return the `<svg>` element, in the page's colours."""
        buffer = io.StringIO()
        with _style(**{"svg.hashsalt": self.name}):
            self.figure.savefig(
                buffer, format="svg", transparent=True, metadata={"Date": None}
            )
        return _for_page(buffer.getvalue(), self.alternative)


def tip(artist: Artist, text: str) -> None:
    """Let a page show a text while the pointer rests on an artist."""
    artist.set_gid(_TIP + text)


@contextmanager
def _style(**changes: Any) -> Iterator[None]:
    settings: Any = {**_STYLE, **changes}
    with matplotlib.rc_context(settings):
        yield


@contextmanager
def panels(
    count: int, width: float = 4.4, height: float = 3.2, columns: int = 2
) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """Start a figure of several plots in the style of all reports.

    Args:
        count: The number of plots, at least one.
        width: The width of one plot, in inches.
        height: The height of one plot, in inches.
        columns: The number of plots side by side, at most.

    Yields:
        The figure, and the plots.
    """
    with _style():
        columns = min(count, columns)
        rows = -(-count // columns)
        figure = Figure((width * columns, height * rows), layout="constrained")
        cells = list(figure.subplots(rows, columns, squeeze=False).flat)
        for cell in cells[count:]:
            cell.remove()
        yield figure, cells[:count]


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """Give one legend for all plots, outside of them, no wider than the figure."""
    entries: dict[str, Artist] = {}
    for plot in axes:
        for handle, label in zip(*plot.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        inches = 0.7 + LETTER * max(map(len, entries))
        columns = max(1, int(figure.get_figwidth() / inches))
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=min(columns, len(entries)),
        )


def _for_page(svg: str, alternative: str) -> str:
    """Return an SVG without fixed colours, fixed size and ids that would clash."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(rf'<g id="{_TIP}([^"]*)">', r'<g class="tip"><title>\1</title>', svg)
    # Matplotlib numbers its groups anew in every figure: twice the same id in a page.
    svg = re.sub(r' id="(?:[A-Za-z0-9.]+_\d+|image[0-9a-f]+)"', "", svg)
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    svg = svg.replace(PAPER, "var(--card)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    size = re.search(r'<svg[^>]*? width="([\d.]+)pt"', svg)
    width = float(size.group(1)) * 4 / 3 if size else 0.0
    svg = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', r"\1", svg, count=1)
    label = html.escape(alternative)
    return svg.replace(
        "<svg",
        f'<svg role="img" aria-label="{label}" style="max-width:{width:.0f}px"',
        1,
    )
