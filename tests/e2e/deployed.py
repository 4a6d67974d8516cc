"""A federation of real processes for tests, by the commands that people use."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import tomllib

import tomli_w

from instahide_fl.config import Config
from instahide_fl.data.federated_data import load_federated_data
from instahide_fl.deployment.services import PROGRAM_FOLDERS
from instahide_fl.flower.app_files import app_root
from tests.e2e.support import COMMAND
from tests.library.pictures import write_parquet

CLIENTS = ("east", "north", "west")
SETTINGS = {
    "partition.num-clients": 3,
    "train.clients-per-round": 3,
    "train.rounds": 2,
    "train.timeout": 150,
    "model.name": "mlp",
}
SEARCHED = os.pathsep.join([os.environ["PATH"], *PROGRAM_FOLDERS])
HAS_NGINX = shutil.which("nginx", path=SEARCHED) is not None


def free_ports(count):
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


def cli(*arguments, timeout=300, within=(), **options):
    """Run a command to its end; `within` goes in front, for instance a namespace."""
    return subprocess.run(
        [*within, *COMMAND, *map(str, arguments)],
        cwd=app_root(),
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )


@contextlib.contextmanager
def service(log, *arguments, within=()):
    """Run a command in the foreground of its own session, and end it as Ctrl-C does."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*within, *COMMAND, *map(str, arguments)],
            cwd=app_root(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def await_text(path, text, seconds=240):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.5)
    raise AssertionError(f"{text!r} is not in {path}: {path.read_text()[-2000:]}")


def own_images(folder, split):
    """Give a client the images of a simulated one, in the same order."""
    pixels = split.images[split.rows].squeeze(1).numpy()
    labels = split.targets[split.rows].tolist()
    path = folder / "share/data/train-0.parquet"
    write_parquet(path, pixels, labels, map(str, range(10)))


def edit(folder, **changes):
    path = folder / "client.toml"
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | changes))


def make_federation(root, host="127.0.0.1", clients=CLIENTS):
    """Make a federation whose clients have the keys of a simulation."""
    fleet, superlink = free_ports(2)
    made = cli(
        *("deploy", "init", root / "federation", "--clients", *clients),
        *("--host", host, "--port", fleet, "--superlink-port", superlink),
    )
    assert made.returncode == 0, made.stderr
    count = len(clients)
    sizes = {"partition.num-clients": count, "train.clients-per-round": count}
    data = load_federated_data(Config().with_values({**SETTINGS, **sizes}))
    for number, name in enumerate(clients):
        folder = root / "federation/clients" / name
        own_images(folder, data.split(number))
        edit(
            folder,
            **{"data": "hf:share", "seeded-client": number},
            # Without nginx before it, clients speak to the SuperLink itself.
            server=f"{host}:{fleet if HAS_NGINX else superlink}",
            limits={"allow-seeded-keys": True},
        )


def server(root, within=()):
    """Run the federation's server; its output is in server.log."""
    proxy = [] if HAS_NGINX else ["--no-proxy"]
    command = ("deploy", "server", root / "federation", *proxy)
    return service(root / "server.log", *command, within=within)


def client(root, name, within=()):
    """Run one of its clients; its output is in NAME.log."""
    own = root / "federation" / "clients" / name
    return service(root / f"{name}.log", "deploy", "client", own, within=within)


@contextlib.contextmanager
def everybody_online(root, clients=CLIENTS):
    """Run server and clients; the folder of the federation."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(server(root))
        await_text(root / "server.log", "Ctrl-C ends it")
        for name in clients:
            stack.enter_context(client(root, name))
        await_online(root / "federation")
        yield root / "federation"


def await_online(folder, seconds=240, within=()):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = cli("deploy", "status", folder, within=within)
        if status.returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(status.stdout + status.stderr)


def settings_file(out, changes):
    """Write the settings of a run beside its folder."""
    settings = {**SETTINGS, **changes}
    Config().with_values(settings)  # a mistake of the test would be a long one
    tables = {}
    for name, value in settings.items():
        table, key = name.split(".")
        tables.setdefault(table, {})[key] = value
    file = out.with_suffix(".toml")
    file.write_text(tomli_w.dumps(tables))
    return file


def deploy_run(federation, out, **changes):
    """Run an experiment to its end."""
    file = settings_file(out, changes)
    return cli("deploy", "run", file, "--federation", federation, "--out", out)
