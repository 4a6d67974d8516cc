"""Contact sheets: pictures of many images at once, in labelled rows."""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from instahide_fl.data.datasets import ImageDataset
from instahide_fl.files import atomic_file

CELL = 0.8  # side of an image, in inches
LABEL = 1.7  # width of the labels, in inches
MARGIN = 0.1  # width left of the images in inches, where no row has a label
TITLE = 0.4  # height of the title, in inches
LABEL_CHARACTERS = 22  # in a line of a label


def save_contact_sheet(
    path: Path, rows: list[tuple[str, Tensor]], title: str, *, private: bool = False
) -> None:
    """Draw rows of images, each with a label to its left.

    Args:
        path: The PNG file.
        rows: The label and the images u8[n,C,H,W] (C 1 or 3) of each row; n may differ.
        title: The title above all rows.
        private: Whether only its owner may read it.

    Raises:
        OutputError: the file cannot be written.
    """
    columns = max(1, max((len(images) for _, images in rows), default=1))
    lines = max(1, len(rows))
    label = LABEL if any(name for name, _ in rows) else MARGIN
    width, height = label + CELL * columns, TITLE + CELL * lines
    figure = Figure(figsize=(width, height), dpi=120)
    cells = figure.subplots(lines, columns, squeeze=False)
    for cell in cells.flat:
        cell.set_axis_off()
    for line, (name, images) in zip(cells, rows, strict=False):
        for cell, image in zip(line, images, strict=False):
            _show(cell, image)
        line[0].text(
            -0.12,
            0.5,
            "\n".join(_wrapped(name)),
            transform=line[0].transAxes,
            ha="right",
            va="center",
            fontsize=9,
            parse_math=False,  # a class may be called $10
        )
    figure.subplots_adjust(
        left=label / width,
        bottom=0.01,
        right=0.99,
        top=1 - TITLE / height,
        wspace=0.06,
        hspace=0.06,
    )
    heading = textwrap.shorten(title, round(width * 12), placeholder=" ...")
    figure.text(
        0.5,
        1 - 0.5 * TITLE / height,
        heading,
        ha="center",
        va="center",
        fontsize=10,
        parse_math=False,
    )
    with atomic_file(path, private=private) as temporary:
        figure.savefig(temporary, format="png")


def class_rows(
    dataset: ImageDataset, classes: int = 10, images: int = 10
) -> list[tuple[str, Tensor]]:
    """Return the first training images of the first classes, for a contact sheet.

    Args:
        dataset: The data set.
        classes: The number of classes, at most.
        images: The number of images of each class, at most.

    Returns:
        The name and the images u8[n,C,H,W] of each class.
    """
    rows = []
    for number, name in enumerate(dataset.class_names[:classes]):
        in_class = torch.nonzero(dataset.train.targets == number)[:images, 0]
        rows.append((name, dataset.train.images[in_class]))
    return rows


def _show(cell: Axes, image: Tensor) -> None:
    # [3,H,W] -> [H,W,3]; one channel [1,H,W] -> [H,W]
    pixels = image.permute(1, 2, 0) if len(image) == 3 else image[0]
    cell.imshow(pixels.cpu().numpy(), cmap="gray", vmin=0, vmax=255)


def _wrapped(label: str) -> list[str]:
    """Break a label into at most three lines."""
    return textwrap.wrap(label, LABEL_CHARACTERS, max_lines=3, placeholder=" ...")
