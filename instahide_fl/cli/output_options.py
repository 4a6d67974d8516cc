"""The options `--quiet` and `--json`, which commands share."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from typer.core import TyperCommand

from instahide_fl.cli.common import console

_AS_JSON = "instahide_fl.as_json"


class QuietCommand(TyperCommand):
    """A command with `--quiet`: it prints warnings and errors, and nothing else."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--quiet", "-q"],
                is_flag=True,
                help="Print warnings and errors only.",
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, with its ordinary output silenced if that is asked for."""
        as_json = ctx.params.pop("as_json_result", False)
        ctx.meta[_AS_JSON] = as_json
        # Set in any case: a process may run several commands, as tests do.
        console.quiet = ctx.params.pop("quiet") or as_json
        return super().invoke(ctx)


class ResultCommand(QuietCommand):
    """A command with `--json` too: it prints its result as JSON, and nothing else."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--json", "as_json_result"],
                is_flag=True,
                help="Print the result as JSON, and nothing else.",
            )
        )


def give_result(result: dict[str, Any]) -> None:
    """Print a command's result, if JSON is asked for.

    Args:
        result: What JSON can hold; paths are written as texts.
    """
    if click.get_current_context().meta[_AS_JSON]:
        json.dump(result, sys.stdout, indent=2, default=str)
        sys.stdout.write("\n")
