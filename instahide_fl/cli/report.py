"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instahide_fl.cli.common import console
from instahide_fl.cli.output_options import give_result


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="One study, one run, or several runs to compare."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Default: report.html in the folder; of several runs, in this one.",
        ),
    ] = None,
) -> None:
    """Write the results as one HTML file: figures, tables, images, provenance."""
    # Imported here: pandas, Matplotlib and the attacks take a while.
    from instahide_fl.report.reports import write_report

    with console.status("writing the report"):
        page = write_report(folders, out)
    console.print(str(page), markup=False, highlight=False)
    give_result({"report": page})
