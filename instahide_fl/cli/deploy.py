"""The commands `deploy`: a federation of real clients on separate machines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instahide_fl.cli.common import (
    Assignments,
    Settings,
    console,
    errors,
    print_rows,
    read_settings,
    refuse_beside_resume,
)
from instahide_fl.cli.output_options import (
    QuietCommand,
    ResultCommand,
    give_result,
)
from instahide_fl.interrupts import Terminated

if TYPE_CHECKING:
    from instahide_fl.config import Config
    from instahide_fl.deployment.federation import FederationFolder

INSECURE = "no encryption, and whoever reaches the server may join or start runs"
MAX_RUNS = 10  # that `deploy status` shows, the newest

deploy_app = typer.Typer(
    help="A federation of real clients on separate machines.", no_args_is_help=True
)
FederationDir = Annotated[
    Path, typer.Argument(metavar="FEDERATION_DIR", help="Folder of the federation.")
]
ClientDir = Annotated[
    Path, typer.Argument(metavar="CLIENT_DIR", help="Folder of a client.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Use neither TLS nor client keys.")
]
Days = Annotated[
    int,
    typer.Option(min=1, max=3650, help="Days that the certificate is valid."),
]


@deploy_app.command("init", cls=QuietCommand)
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
            help="Where clients reach the server; repeatable. Default: localhost.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="The server's port for clients.")] = 9443,
    superlink_port: Annotated[
        int | None,
        typer.Option(help="The SuperLink's port, on loopback. Default: --port plus 1."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="The federation's name. Default: the folder's name."),
    ] = None,
    days: Days = 730,
) -> None:
    """Make certificates, keys and a folder for each client."""
    from instahide_fl.deployment.federation import FederationConfig, client_names
    from instahide_fl.deployment.federation_files import create_federation

    # After --clients the command line takes one name itself; the others come as `more`.
    config = FederationConfig(
        name=name or folder.absolute().name,
        hosts=host or ["localhost"],
        fleet_port=port,
        superlink_port=superlink_port or port + 1,
        clients=client_names([*clients, *(more or [])]),
    )
    federation = create_federation(folder, config, _installed_code(), days)
    console.print(
        f"{len(config.clients)} clients and a server in {folder}", markup=False
    )
    for client in config.clients:
        console.print(f"  hand {federation.client(client)} to {client}", markup=False)
    if not host:
        console.print(
            "The certificate is for this machine only: for others, give --host NAME.",
            style="yellow",
        )
    console.print(f"next: {federation.path / 'README.md'}", markup=False)


@deploy_app.command("add", cls=QuietCommand)
def deploy_add(
    folder: FederationDir,
    client: Annotated[str, typer.Argument(metavar="NAME", help="The client.")],
) -> None:
    """Make a folder for another client."""
    from instahide_fl.deployment.federation_files import add_client

    federation = add_client(folder, client, _installed_code())
    console.print(f"hand {federation.client(client)} to {client}", markup=False)
    _reconcile(federation)


@deploy_app.command("remove", cls=QuietCommand)
def deploy_remove(
    folder: FederationDir,
    client: Annotated[str, typer.Argument(metavar="NAME", help="The client.")],
) -> None:
    """Take a client out of the federation."""
    from instahide_fl.deployment.federation_files import remove_client

    _reconcile(remove_client(folder, client))


@deploy_app.command("renew", cls=QuietCommand)
def deploy_renew(folder: FederationDir, days: Days = 730) -> None:
    """Make a new certificate for the server, signed by the same authority."""
    from instahide_fl.deployment.federation_files import renew_certificate

    federation = renew_certificate(folder, days)
    console.print(f"new: {federation.server / 'server.crt'}", markup=False)
    console.print("restart instahide-fl deploy server; clients need nothing new")


@deploy_app.command("code-hash", cls=ResultCommand)
def deploy_code_hash() -> None:
    """Print the hash of the installed app, which clients pin."""
    code_hash = _installed_code()
    console.print(code_hash)
    give_result({"code_hash": code_hash})


@deploy_app.command("pin", cls=QuietCommand)
def deploy_pin(
    folder: ClientDir,
    code_hash: Annotated[
        str | None,
        typer.Argument(metavar="[HASH]", help="Default: this installation's hash."),
    ] = None,
) -> None:
    """Let a client run this code and no other."""
    from instahide_fl.deployment.pinning import pin_code

    before, after = pin_code(folder, code_hash or _installed_code())
    print_rows(("before", before or "any code"), ("now", after))


@deploy_app.command("server")
def deploy_server(
    folder: FederationDir,
    proxy: Annotated[
        bool,
        typer.Option(
            "--proxy/--no-proxy",
            help="Accept clients on other machines, by nginx.",
        ),
    ] = True,
    insecure: Insecure = False,
) -> None:
    """Run the SuperLink, behind nginx, until Ctrl-C."""
    from instahide_fl.deployment.federation import open_federation
    from instahide_fl.deployment.services import serve

    federation = open_federation(folder)
    if insecure:
        errors.print(f"warning: {INSECURE}: for trials on this machine only")
    with ends_quietly():
        serve(federation, proxy, insecure, _show)


@deploy_app.command("client")
def deploy_client(folder: ClientDir, insecure: Insecure = False) -> None:
    """Take part in a federation until Ctrl-C."""
    from instahide_fl.deployment.policy import read_policy
    from instahide_fl.deployment.services import take_part

    policy = read_policy(folder)
    if insecure:
        errors.print(f"warning: {INSECURE}: for trials on this machine only")
    if not policy.code_hash:
        errors.print(
            "warning: no code-hash in client.toml: this machine runs whatever the "
            "server sends (instahide-fl deploy pin)"
        )
    with ends_quietly():
        take_part(folder, policy, insecure, _show)


@deploy_app.command("run", cls=ResultCommand)
def deploy_run(
    config: Settings = None,
    federation: Annotated[
        Path,
        typer.Option(metavar="FEDERATION_DIR", help="Folder of the federation."),
    ] = Path("federation"),
    assignments: Assignments = None,
    seed: Annotated[int | None, typer.Option(help="Same as --set seed=N.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Continue the run in DIR.")
    ] = None,
    insecure: Insecure = False,
) -> None:
    """Train on the clients of a federation and write the run folder."""
    from instahide_fl.cli.run import DEPLOYMENT, train
    from instahide_fl.deployment.federation import open_federation
    from instahide_fl.deployment.run_deployed import run_deployed
    from instahide_fl.deployment.superlink import LocalSuperLink
    from instahide_fl.run_folder import RunFolder, free_run_folder

    superlink = LocalSuperLink(open_federation(federation), insecure)
    if resume is not None:
        refuse_beside_resume(config, assignments, seed, out)
        folder = RunFolder.open_interrupted(resume)
        settings = folder.config()
    else:
        settings = read_settings(config, assignments, seed).with_absolute_paths(
            Path.cwd()
        )
    superlink.check_is_up()
    if resume is None:
        settings = _with_client_noise(settings, superlink.folder)
        path = out or free_run_folder(Path("runs"), settings)
        folder = RunFolder.create(path, settings)
    train(
        settings,
        folder,
        partial(run_deployed, superlink),
        DEPLOYMENT,
        resumed=resume is not None,
        command="instahide-fl deploy run",
    )


def _with_client_noise(settings: Config, federation: FederationFolder) -> Config:
    """Return the settings with the noise for an epsilon of each client, if asked for.

    For an epsilon of each image (dp-sgd) clients' numbers of images would be needed:
    the server, which is told them, refuses noise that is too small.
    """
    from instahide_fl.defenses.planned_privacy import with_target_epsilon

    if settings.defense.differential_privacy == "dp-sgd":
        return settings
    count = settings.partition.num_clients
    names = federation.config.clients[: count or None]
    return with_target_epsilon(settings, dict.fromkeys(names, 1))


@deploy_app.command("status", cls=ResultCommand)
def deploy_status(folder: FederationDir, insecure: Insecure = False) -> None:
    """Show clients and runs; the exit code is 1 if a client is not online."""
    from instahide_fl.deployment.federation import open_federation
    from instahide_fl.deployment.superlink import LocalSuperLink

    superlink = LocalSuperLink(open_federation(folder), insecure)
    superlink.check_is_up()
    clients, runs = superlink.clients(), superlink.flwr().runs()
    print_rows(*((f"client {client.name}", client.status) for client in clients))
    print_rows(*((f"run {run.identifier}", run.status) for run in runs[:MAX_RUNS]))
    give_result(
        {
            "clients": {client.name: client.status for client in clients},
            "runs": {run.identifier: run.status for run in runs},
        }
    )
    if insecure:
        return
    online = {client.name for client in clients if client.status == "online"}
    if away := {*superlink.folder.config.clients} - online:
        output = errors if console.quiet else console
        output.print(f"not online: {', '.join(sorted(away))}", style="yellow")
        raise typer.Exit(1)


@deploy_app.command("stop", cls=QuietCommand)
def deploy_stop(folder: FederationDir, insecure: Insecure = False) -> None:
    """Stop the current runs; the server and its clients keep running."""
    from instahide_fl.deployment.federation import open_federation
    from instahide_fl.deployment.superlink import LocalSuperLink

    superlink = LocalSuperLink(open_federation(folder), insecure)
    superlink.check_is_up()
    flwr = superlink.flwr()
    active = [run for run in flwr.runs() if not run.is_over]
    for run in active:
        flwr.stop(run.identifier)
        console.print(f"stopped run {run.identifier}", markup=False)
    if not active:
        console.print("no run is going on")


@contextlib.contextmanager
def ends_quietly() -> Iterator[None]:
    """Treat SIGTERM as the ordinary end of a service, and say that it ended."""
    try:
        yield
    except Terminated:
        console.print("ended")
    except KeyboardInterrupt:
        raise KeyboardInterrupt("ended") from None


def _show(line: str) -> None:
    # Flushed, so that it appears at once where the output goes to a journal.
    print(line, flush=True)


def _reconcile(folder: FederationFolder) -> None:
    """Tell a running server which clients there are.

    A server that is not running reads the folder when it starts.
    """
    from instahide_fl.deployment.superlink import LocalSuperLink

    superlink = LocalSuperLink(folder)
    if not superlink.is_up():
        console.print("instahide-fl deploy server takes note of it when it starts")
        return
    for line in superlink.reconcile():
        console.print(line, markup=False)


def _installed_code() -> str:
    # Imported where it is needed: PyTorch comes with it, and `--help` needs none.
    from instahide_fl.deployment.app_hash import app_hash_of_installation

    return app_hash_of_installation()
