"""All commands, in one command line."""

from __future__ import annotations

import typer

from instahide_fl.cli.attack import attack
from instahide_fl.cli.challenge import challenge_app
from instahide_fl.cli.compare import compare
from instahide_fl.cli.data import data_app
from instahide_fl.cli.deploy import deploy_app
from instahide_fl.cli.doctor import doctor
from instahide_fl.cli.encode import encode
from instahide_fl.cli.evaluate import evaluate
from instahide_fl.cli.pool import pool_app
from instahide_fl.cli.report import report
from instahide_fl.cli.run import run

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
