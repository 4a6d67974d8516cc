"""The command `instahide-fl`.

Exit code 0 only on success, 2 for a user's mistake (one line says what to do), 1 for a
run that failed.
"""

from __future__ import annotations

import io
import os
import sys

import typer

from instahide_fl.cli.attack import attack
from instahide_fl.cli.challenge import challenge_app
from instahide_fl.cli.common import errors
from instahide_fl.cli.compare import compare
from instahide_fl.cli.data import data_app
from instahide_fl.cli.deploy import deploy_app
from instahide_fl.cli.doctor import doctor
from instahide_fl.cli.encode import encode
from instahide_fl.cli.evaluate import evaluate
from instahide_fl.cli.pool import pool_app
from instahide_fl.cli.report import report
from instahide_fl.cli.run import run
from instahide_fl.environment import SAFE_IMPORTS
from instahide_fl.errors import InstaHideError
from instahide_fl.terminal import printable

app = typer.Typer(
    help="Federated learning with InstaHide, and the measurement of what it hides.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(run)
app.command()(encode)
app.command()(evaluate)
app.command()(attack)
app.command()(compare)
app.command()(report)
app.command()(doctor)
app.add_typer(data_app, name="data")
app.add_typer(pool_app, name="pool")
app.add_typer(challenge_app, name="challenge")
app.add_typer(deploy_app, name="deploy")


def main() -> None:
    """Run the command line; turn this package's errors into one line and a code."""
    os.environ.update(SAFE_IMPORTS)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold bytes that are no text, and stopping at one helps nobody.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except InstaHideError as error:
        lines = f"error: {error}".split("\n")
        errors.print("\n".join(map(printable, lines)))
        sys.exit(error.exit_code)
