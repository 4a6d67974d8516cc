"""A federation across a network: each machine is a network namespace on a bridge."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time

import pytest

from instahide_fl.deployment.federation import open_federation
from instahide_fl.run_folder import RunFolder
from tests.e2e.deployed import (
    CLIENTS,
    HAS_NGINX,
    await_online,
    await_text,
    cli,
    client,
    make_federation,
    server,
    service,
    settings_file,
)

CAN_MAKE_NETWORKS = os.geteuid() == 0 and shutil.which("ip") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not HAS_NGINX, reason="needs nginx"),
    pytest.mark.skipif(not CAN_MAKE_NETWORKS, reason="needs root and iproute2"),
]
ADDRESS = "10.77.0.1"


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def inside(machine):
    return ("ip", "netns", "exec", machine)


@pytest.fixture(scope="module")
def network():
    """Namespaces by name: the server's with a bridge, and one for each client."""
    machines = {name: f"ihfl-{os.getpid()}-{name}" for name in ("server", *CLIENTS)}
    hub = machines["server"]
    with contextlib.ExitStack() as stack:
        for machine in machines.values():
            ip("netns", "add", machine)
            stack.callback(ip, "netns", "del", machine)
            ip("-n", machine, "link", "set", "lo", "up")
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "address", "add", f"{ADDRESS}/24", "dev", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for number, name in enumerate(CLIENTS, start=2):
            peer = ("peer", "name", "cable", "netns", machines[name])
            ip("link", "add", name, "netns", hub, "type", "veth", *peer)
            ip("-n", hub, "link", "set", name, "master", "bridge", "up")
            address = f"10.77.0.{number}/24"
            ip("-n", machines[name], "address", "add", address, "dev", "cable")
            ip("-n", machines[name], "link", "set", "cable", "up")
        yield machines


@pytest.fixture(scope="module")
def federation(network, tmp_path_factory):
    root = tmp_path_factory.mktemp("network")
    make_federation(root, ADDRESS)
    with contextlib.ExitStack() as stack:
        stack.enter_context(server(root, inside(network["server"])))
        await_text(root / "server.log", "Ctrl-C ends it")
        for name in CLIENTS:
            stack.enter_context(client(root, name, inside(network[name])))
        await_online(root / "federation", within=inside(network["server"]))
        yield root / "federation"


def test_a_client_reaches_the_fleet_and_nothing_else_of_the_server(federation, network):
    config = open_federation(federation).config
    told = cli("doctor", federation / "clients/east", within=inside(network["east"]))
    assert told.returncode == 0, told.stdout
    probe = "import socket; socket.create_connection(({!r}, {}), 5)"
    for port, code in ((config.fleet_port, 0), (config.superlink_port, 1)):
        reached = subprocess.run(
            [*inside(network["east"]), "python3", "-c", probe.format(ADDRESS, port)],
            capture_output=True,
        )
        assert reached.returncode == code


def test_a_round_goes_on_without_whose_cable_is_pulled_and_takes_it_back(
    federation, network, tmp_path
):
    out = tmp_path / "run"
    # A slow machine may lose another client now and then: only "west" is waited for.
    changes = {"train.rounds": 60, "train.timeout": 60.0, "train.min-updates": 1}
    settings = settings_file(out, changes)
    run = ("deploy", "run", settings, "--federation", federation, "--out", out)
    machine, folder = network["west"], RunFolder(out)
    with service(tmp_path / "run.log", *run, within=inside(network["server"])):
        await_row(folder, lambda rows: rows[-1]["clients"] == 3)
        ip("-n", machine, "link", "set", "cable", "down")
        await_row(folder, lambda rows: list(rows[-1]["failure_reasons"]) == ["west"])
        ip("-n", machine, "link", "set", "cable", "up")
        await_row(folder, lambda rows: rows[-1]["clients"] == 3)


def await_row(folder, condition, seconds=400):
    """Wait for a round; return what metrics.jsonl says of it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        rows = folder.metrics()
        if rows and condition(rows):
            return rows[-1]
        time.sleep(0.5)
    raise AssertionError(folder.metrics())
