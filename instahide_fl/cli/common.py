"""Consoles, settings and printing, which all commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from instahide_fl.config import Config, Scalar, parse_assignment
from instahide_fl.errors import ConfigError, OutputError

BROKEN = "InstaHide is broken as an encryption scheme (Carlini et al., IEEE S&P 2021)"
DATASET_HELP = "A name as in data.dataset, for instance mnist-5k or imagefolder:PATH."

# A notebook's cell calls itself a terminal, but nothing drawn in it can be replaced.
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
    """Merge the settings file, `--set` and `--seed`, in this order.

    Args:
        path: The settings file; None takes the defaults.
        assignments: The values of `--set`, each KEY=VALUE.
        seed: The value of `--seed`; None leaves the seed as it is.

    Raises:
        ConfigError: a setting is unknown or not valid.
    """
    changes: dict[str, Scalar] = dict(map(parse_assignment, assignments or []))
    if seed is not None:
        changes["seed"] = seed
    return Config.from_toml(path, changes) if path else Config().with_values(changes)


def refuse_beside_resume(
    path: Path | None,
    assignments: Sequence[str] | None,
    seed: int | None,
    out: Path | None,
) -> None:
    """Refuse options that a run which is resumed cannot change any more.

    Args:
        path: The settings file.
        assignments: The values of `--set`.
        seed: The value of `--seed`.
        out: The value of `--out`.

    Raises:
        ConfigError: one of them is given.
    """
    if path or assignments or seed is not None or out:
        raise ConfigError(
            "--resume continues with the settings of its folder: give no settings "
            "file, --set, --seed or --out beside it"
        )


def refuse_existing(*paths: Path | None) -> None:
    """Refuse to write over files.

    Args:
        paths: The files; None stands for one that is not asked for.

    Raises:
        OutputError: a file exists.
    """
    for path in paths:
        if path is not None and path.exists():
            raise OutputError(f"{path} exists already: choose another name")


def print_rows(*rows: tuple[str, object]) -> None:
    """Print names and values in two columns."""
    for name, value in rows:
        console.print(f"{name:<16} {value}", markup=False)
