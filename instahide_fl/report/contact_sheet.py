"""A contact sheet: rows of images side by side."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from instahide_fl.files import atomic_file

CELL = 0.45  # inches


def save_contact_sheet(path: Path, rows: list[tuple[str, Tensor]], title: str) -> None:
    """Draw rows of images, each with its name on the left.

    Args:
        path: of the PNG file.
        rows: name and u8[n,C,H,W] of each; n may differ.
        title: drawn above.

    Raises:
        OutputError: the file cannot be written.
    """
    columns = max(len(images) for _, images in rows)
    margin = 1.3 if any(name for name, _ in rows) else 0.05
    width, height = CELL * columns + margin + 0.05, CELL * len(rows) + 0.35
    figure = Figure(figsize=(width, height), dpi=120)
    cells = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, images) in zip(cells, rows, strict=True):
        for cell in line:
            cell.set_axis_off()
        for cell, image in zip(line, images, strict=False):
            shown = image.permute(1, 2, 0) if len(image) == 3 else image[0]
            cell.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=255)
        place = line[0].transAxes
        line[0].text(-0.15, 0.5, name, transform=place, ha="right", va="center")
    figure.suptitle(title, fontsize=9, y=1 - 0.08 / height, va="top")
    top = 1 - 0.33 / height
    figure.subplots_adjust(
        margin / width, 0.01, 1 - 0.05 / width, top, wspace=0.06, hspace=0.06
    )
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
