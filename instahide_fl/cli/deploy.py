"""The commands `deploy`: a federation of real clients on separate machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instahide_fl.cli.common import console, print_rows

deploy_app = typer.Typer(
    help="A federation of real clients on separate machines.", no_args_is_help=True
)
FederationDir = Annotated[
    Path, typer.Argument(metavar="FEDERATION_DIR", help="Folder of the federation.")
]
ClientDir = Annotated[
    Path, typer.Argument(metavar="CLIENT_DIR", help="Folder of a client.")
]
Days = Annotated[
    int, typer.Option(min=1, max=3650, help="Validity of the server's certificate.")
]


@deploy_app.command("init")
def deploy_init(
    folder: FederationDir,
    clients: Annotated[
        list[str],
        typer.Option("--clients", metavar="NAME ...", help="Names of the clients."),
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="", help="Further names.", hidden=True),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="NAME-OR-IP",
            help="The server, as clients reach it; repeat it. Default: localhost.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Of the server, for clients.")] = 9443,
    superlink_port: Annotated[
        int | None, typer.Option(help="On loopback. Default: the next after --port.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the federation. Default: the folder's name.")
    ] = None,
    days: Days = 730,
) -> None:
    """Make certificates, keys and a folder for each client."""
    from instahide_fl.deployment.folder import (
        FederationConfig,
        client_names,
        create_federation,
    )

    # After --clients the command line takes one name itself; the others come as `more`.
    config = FederationConfig(
        name=name or folder.absolute().name,
        hosts=host or ["localhost"],
        fleet_port=port,
        superlink_port=superlink_port or port + 1,
        clients=client_names([*clients, *(more or [])]),
    )
    made = create_federation(folder, config, _installed_code(), days)
    console.print(
        f"{len(config.clients)} clients and a server in {folder}", markup=False
    )
    for one in config.clients:
        console.print(f"  hand {made.client(one)} to {one}", markup=False)
    if not host:
        console.print(
            "The certificate is for this machine only: for others, give --host NAME.",
            style="yellow",
        )
    console.print(f"next: {made.path / 'README.md'}", markup=False)


@deploy_app.command("add")
def deploy_add(
    folder: FederationDir,
    client: Annotated[str, typer.Argument(metavar="NAME", help="Of the client.")],
) -> None:
    """Make a folder for another client."""
    from instahide_fl.deployment.folder import add_client

    made = add_client(folder, client, _installed_code())
    console.print(f"hand {made.client(client)} to {client}", markup=False)
    console.print("restart instahide-fl deploy server, which then lets the client in")


@deploy_app.command("renew")
def deploy_renew(folder: FederationDir, days: Days = 730) -> None:
    """Make a new certificate for the server, by the same authority."""
    from instahide_fl.deployment.folder import renew_certificate

    made = renew_certificate(folder, days)
    console.print(f"new: {made.server / 'server.crt'}", markup=False)
    console.print("restart instahide-fl deploy server; clients need nothing new")


@deploy_app.command("code-hash")
def deploy_code_hash() -> None:
    """Print the hash of the installed app, which clients pin."""
    console.print(_installed_code())


@deploy_app.command("pin")
def deploy_pin(
    folder: ClientDir,
    code_hash: Annotated[
        str | None,
        typer.Argument(metavar="[HASH]", help="Without: of this installation."),
    ] = None,
) -> None:
    """Let a client run this code and no other."""
    from instahide_fl.deployment.pinning import pin_code

    before, after = pin_code(folder, code_hash or _installed_code())
    print_rows(("before", before or "any code"), ("now", after))


def _installed_code() -> str:
    """Return the hash of the app that this installation sends to clients."""
    from instahide_fl.deployment.code import hash_of_folder
    from instahide_fl.engine.bundle import app_root

    return hash_of_folder(app_root())
