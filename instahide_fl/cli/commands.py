"""All commands, in one command line."""

from __future__ import annotations

from typing import Annotated

import typer

from instahide_fl import __version__
from instahide_fl.cli.attack import attack
from instahide_fl.cli.challenge import challenge_app
from instahide_fl.cli.compare import compare
from instahide_fl.cli.data import data_app
from instahide_fl.cli.deploy import deploy_app
from instahide_fl.cli.doctor import doctor
from instahide_fl.cli.encode import encode
from instahide_fl.cli.evaluate import evaluate
from instahide_fl.cli.output_options import ResultCommand
from instahide_fl.cli.pool import pool_app
from instahide_fl.cli.report import report
from instahide_fl.cli.run import run

app = typer.Typer(
    help="Federated learning with InstaHide, and the measurement of what it hides.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"instahide-fl {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Federated learning with InstaHide, and the measurement of what it hides."""


for command in (run, encode, evaluate, attack, compare, report, doctor):
    app.command(cls=ResultCommand)(command)
app.add_typer(data_app, name="data")
app.add_typer(pool_app, name="pool")
app.add_typer(challenge_app, name="challenge")
app.add_typer(deploy_app, name="deploy")
