"""Attacks on the Ray of a run: by another account, and from another machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import ray

from instahide_fl.config import ResourcesConfig
from instahide_fl.engine.private_ray import LOOPBACK_ADDRESSES, TOKEN, is_cluster_open
from instahide_fl.engine.ray.cluster import ray_cluster
from instahide_fl.interrupts import Terminated, interrupt, signals_handled
from tests.e2e.support import (
    listening,
    marked_processes,
    private_homes,
    processes,
)

pytestmark = pytest.mark.slow

NOBODY = 65534
IS_ROOT = os.geteuid() == 0
HERE, THERE = "10.78.0.1", "10.78.0.2"
# Writes into the table from which workers take the code that they run.
ATTACK = """
import sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
client.internal_kv_put(b"attack", b"done", True, b"fun", timeout=20)
print(client.internal_kv_get(b"attack", b"fun", timeout=20))
"""
CONNECT = """
import socket, sys
for port in sys.argv[2:]:
    with socket.socket() as probe:
        probe.settimeout(5)
        print(port, probe.connect_ex((sys.argv[1], int(port))))
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    handled = signals_handled(interrupt, signal.SIGTERM)
    with handled, ray_cluster(ResourcesConfig(workers=1), logs):

        @ray.remote
        def complain():
            print("a worker's last words", file=sys.stderr)

        ray.get(complain.remote())
        yield ray.get_runtime_context().gcs_address
    assert "a worker's last words" in "".join(p.read_text() for p in logs.iterdir())
    assert TOKEN not in os.environ
    assert not private_homes()


def attack(address, token, within=()):
    environment = {"PATH": os.environ["PATH"], "RAY_AUTH_MODE": "token"}
    command = [*within, sys.executable, "-c", ATTACK, address]
    return subprocess.run(
        command,
        env={**environment, TOKEN: token},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_ray_listens_on_loopback_alone(address):
    ports = listening([*marked_processes(), os.getpid()])
    assert len(ports) > 3
    assert {host for host, _ in ports} <= set(LOOPBACK_ADDRESSES)


def test_nobody_gets_in_without_the_token_which_is_written_nowhere(address):
    token = os.environ[TOKEN]
    assert "b'done'" in attack(address, token).stdout
    refused = attack(address, token[::-1])
    assert refused.returncode != 0
    assert "nauthenticated" in refused.stderr
    assert not is_cluster_open(address)
    (home,) = private_homes()
    assert home.stat().st_mode & 0o777 == 0o700
    for path in home.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes()
    assert not [p for p in processes() if token in " ".join(p.cmdline())]


def test_a_command_answers_sigterm_itself_while_ray_is_on(address):
    assert signal.getsignal(signal.SIGTERM) is interrupt
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.skipif(not IS_ROOT, reason="becoming another account needs root")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_another_account_neither_gets_in_nor_reads_the_folder(address):
    other = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    (home,) = private_homes()
    listed = subprocess.run([*other, "ls", home], capture_output=True, text=True)
    assert "Permission denied" in listed.stderr
    environments = [f"/proc/{pid}/environ" for pid in marked_processes()]
    read = subprocess.run([*other, "cat", *environments], capture_output=True)
    assert read.stdout == b""
    assert attack(address, "guess", other).returncode != 0


@pytest.fixture
def machine():
    """Another machine: a network namespace on a cable to this one."""
    name = f"ihfl-{os.getpid()}-ray"

    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    with contextlib.ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)
        peer = ("peer", "name", "cable", "netns", name)
        ip("link", "add", "ihfl-ray", "type", "veth", *peer)
        ip("address", "add", f"{HERE}/24", "dev", "ihfl-ray")
        ip("link", "set", "ihfl-ray", "up")
        ip("-n", name, "address", "add", f"{THERE}/24", "dev", "cable")
        ip("-n", name, "link", "set", "cable", "up")
        yield ("ip", "netns", "exec", name)


@pytest.mark.skipif(not IS_ROOT, reason="making a network needs root")
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")
def test_another_machine_reaches_no_port(address, machine):
    with socket.create_server((HERE, 0)) as reachable:
        own = reachable.getsockname()[1]
        ports = [own, *(port for _, port in listening(marked_processes()))]
        reached = subprocess.run(
            [*machine, sys.executable, "-c", CONNECT, HERE, *map(str, ports)],
            capture_output=True,
            text=True,
        )
    codes = dict(line.split() for line in reached.stdout.splitlines())
    assert codes.pop(str(own)) == "0"
    assert codes
    assert "0" not in codes.values()
