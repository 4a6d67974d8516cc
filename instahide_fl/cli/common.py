"""What the commands share: consoles, settings, and small ways of printing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from instahide_fl.config import Config, Scalar, parse_assignment
from instahide_fl.errors import OutputError

BROKEN = "InstaHide is broken as an encryption scheme (Carlini et al., IEEE S&P 2021)"
DATASET_HELP = "A name as in data.dataset, for instance mnist-5k or imagefolder:PATH."

# A cell of a notebook calls itself a terminal, and shows all that was ever drawn on it.
_TERMINAL = False if "JPY_PARENT_PID" in os.environ else None
console = Console(soft_wrap=True, force_terminal=_TERMINAL)
errors = Console(
    stderr=True,
    soft_wrap=True,
    highlight=False,
    markup=False,
    force_terminal=_TERMINAL,
)

Settings = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG.toml]", help="Settings file.")
]
SettingsOption = Annotated[
    Path | None, typer.Option("--config", metavar="CONFIG.toml", help="Settings file.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.rounds=50."
    ),
]


def read_settings(
    path: Path | None, assignments: Sequence[str] | None, seed: int | None
) -> Config:
    """Merge the settings file, `--set` and `--seed`, in this order."""
    changes: dict[str, Scalar] = dict(map(parse_assignment, assignments or []))
    if seed is not None:
        changes["seed"] = seed
    return Config.from_toml(path, changes) if path else Config().with_values(changes)


def interrupt(number: int, frame: object) -> NoReturn:
    """End as Ctrl-C does: a signal handler."""
    raise KeyboardInterrupt


def refuse_existing(*paths: Path | None) -> None:
    """Refuse to write over files.

    Raises:
        OutputError: one of them exists.
    """
    for path in paths:
        if path is not None and path.exists():
            raise OutputError(f"{path} exists already: choose another name")


def print_rows(*rows: tuple[str, object]) -> None:
    """Print names and values in two columns."""
    for name, value in rows:
        console.print(f"{name:<16} {value}", markup=False)
