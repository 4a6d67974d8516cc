"""A picture of a partition: how many images of each class every client holds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from instahide_fl.data.partition import Partition, count_labels
from instahide_fl.files import atomic_file

Counts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
"""i64[M,K]: the number of images that M clients have of K classes."""

MAX_BARS = 30  # clients; with more, bars are too thin to tell colours apart
MAX_COLOURS = 20  # classes; there are no more colours that differ
MAX_NUMBERED = 100  # clients that are drawn in their own order
MAX_ROWS = 100  # rows of a heat map


def save_partition_picture(
    path: Path, partition: Partition, targets: Tensor, class_names: Sequence[str]
) -> None:
    """Draw the label distribution of every client.

    Each client is a bar, with a colour for each class. Where clients or classes are too
    many for that, one plot shows the sizes, and a heat map below it the share of each
    class in a client's images. More than 100 clients are sorted, above by size and
    below by most frequent class.

    Args:
        path: The PNG file.
        partition: The training images that each client holds.
        targets: i64[N], the classes of all training images.
        class_names: The names of the K classes.

    Raises:
        OutputError: the file cannot be written.
    """
    counts = count_labels(partition, targets, len(class_names)).numpy()
    few = len(counts) <= MAX_BARS and len(class_names) <= MAX_COLOURS
    figure = _bars(counts, class_names) if few else _heat_map(counts, class_names)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _bars(counts: Counts, class_names: Sequence[str]) -> Figure:
    clients, classes = counts.shape
    figure = Figure((max(5.0, 0.4 * clients + 2.5), 3.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab10" if classes <= 10 else "tab20"]
    below = np.zeros(clients, np.int64)
    for number in range(classes):
        axes.bar(
            np.arange(clients),
            counts[:, number],
            bottom=below,
            color=colours(number),
            label=_short(class_names[number]),
        )
        below += counts[:, number]
    axes.set_xticks(np.arange(clients))
    axes.set(xlabel="client", ylabel="images", xlim=(-0.6, clients - 0.4))
    axes.set_ylim(0, 1.05 * below.max())
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    bars, names = axes.get_legend_handles_labels()
    # From the top, as the colours lie in the bars.
    legend = figure.legend(
        bars[::-1],
        names[::-1],
        title="class",
        loc="outside right upper",
        fontsize=8,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _heat_map(counts: Counts, class_names: Sequence[str]) -> Figure:
    clients = len(counts)
    sizes = counts.sum(axis=1)
    shares = _grouped(counts) / np.maximum(sizes, 1)[:, None]  # [M,R], R rows
    in_order = clients <= MAX_NUMBERED
    if not in_order:
        sizes = np.sort(sizes)[::-1]
        # By most frequent class: a diagonal is easier to read than noise.
        shares = shares[np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))]
    # One pixel for each client, as far as a page is wide enough.
    width = min(14.0, max(8.0, clients / 95))
    figure = Figure((width, 5.6), dpi=120, layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(1, 2.5))
    top.stairs(sizes, np.arange(clients + 1) - 0.5, fill=True, color="tab:gray")
    top.set(ylabel="images", xlim=(-0.5, clients - 0.5), ylim=(0, 1.05 * sizes.max()))
    top.set_xlabel("client" if in_order else f"{clients:,} clients, largest first")
    _draw_shares(figure, bottom, shares, class_names)
    if not in_order:
        bottom.set_xlabel("the same clients, by their most frequent class")
    for axes in (top, bottom):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _grouped(counts: Counts) -> Counts:
    """Add up neighbouring classes until at most MAX_ROWS rows are left."""
    classes = counts.shape[1]
    classes_a_row = -(-classes // MAX_ROWS)
    starts = np.arange(0, classes, classes_a_row)
    return np.add.reduceat(counts, starts, axis=1)  # [M,K] -> [M,R]


def _draw_shares(
    figure: Figure,
    axes: Axes,
    shares: np.ndarray[Any, np.dtype[np.float64]],
    class_names: Sequence[str],
) -> None:
    clients, rows = shares.shape
    classes = len(class_names)
    # The extent lets the axis count classes where a row stands for several of them.
    extent = (-0.5, clients - 0.5, classes - 0.5, -0.5)
    heat_map = axes.imshow(
        shares.T,
        aspect="auto",
        cmap="viridis",
        extent=extent,
        interpolation="nearest",
        norm=PowerNorm(0.5, vmin=0),  # shows small shares too
    )
    classes_a_row = -(-classes // rows)
    axes.set_xlabel("client")
    axes.set_ylabel(
        "class" if classes_a_row == 1 else f"class, {classes_a_row} together"
    )
    if classes <= MAX_COLOURS:
        axes.set_yticks(range(classes), [_short(name) for name in class_names])
        for text in axes.get_yticklabels():
            text.set_parse_math(False)
    figure.colorbar(heat_map, ax=axes, label="share of the client's images")


def _short(name: str) -> str:
    return textwrap.shorten(name, 24, placeholder="...") or "..."
