"""Printing the report of a data set that a command works on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instahide_fl.cli.common import console, errors

if TYPE_CHECKING:
    from instahide_fl.data.datasets import ImageDataset


def print_data_summary(dataset: ImageDataset) -> None:
    """Print what a data set is in a few lines, and its warnings on standard error."""
    from instahide_fl.data.report_text import (
        data_summary,
        held_out_lines,
        warning_lines,
    )

    if dataset.report is None:
        return
    lines = [*data_summary(dataset.report), *held_out_lines(dataset.held_out.sizes())]
    for line in lines:
        console.print(line, markup=False, highlight=False)
    for line in warning_lines(dataset.report):
        errors.print(line, style="yellow")
