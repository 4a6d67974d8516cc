"""The command `doctor`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from instahide_fl.cli.common import console, errors
from instahide_fl.cli.output_options import give_result
from instahide_fl.config import Config, parse_assignment
from instahide_fl.terminal import printable


def doctor(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CLIENT_DIR | FEDERATION_DIR]",
            help="Folder to check. Default: check the installation only.",
        ),
    ] = None,
    image_size: Annotated[
        int,
        typer.Option(min=0, help="The setting data.image-size of a client's runs."),
    ] = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another setting of a client's runs, e.g. data.channels=3.",
        ),
    ] = None,
) -> None:
    """Check whether this machine is ready, and say what to mend."""
    from instahide_fl.deployment.doctor import examine_folder, examine_installation

    faults = 0
    config = Config().with_values({"data.image-size": image_size})
    config = config.with_values(dict(map(parse_assignment, assignments or [])))
    checks = []
    for result in examine_folder(folder, config) if folder else examine_installation():
        checks.append(asdict(result))
        mark = "[green]ok[/]" if result.ok else "[red]--[/]"
        line = printable(f"{result.subject:<20} {result.text}")
        console.print(f"{mark}  {escape(line)}")
        if console.quiet and not result.ok:
            errors.print(line)
        faults += not result.ok
    give_result({"ready": not faults, "checks": checks})
    if faults:
        console.print(f"{faults} to mend")
        sys.exit(1)
