"""What dies in a deployment is started again with the same command, and goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import psutil
import pytest

from instahide_fl.flower.app_files import app_root
from instahide_fl.run_folder import RunFolder
from tests.e2e.deployed import (
    CLIENTS,
    await_online,
    await_text,
    cli,
    client,
    deploy_run,
    everybody_online,
    make_federation,
    server,
    service,
    settings_file,
)
from tests.e2e.support import COMMAND

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture
def place(tmp_path):
    make_federation(tmp_path)
    return tmp_path


def kill(process):
    """Kill a command and all that it has started, as a power cut does."""
    every = [*psutil.Process(process.pid).children(recursive=True), process]
    for one in every:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
    process.wait(30)


def start(*arguments):
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=app_root(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def await_rounds(run, count, seconds=180):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if len(RunFolder(run).metrics()) >= count:
            return
        time.sleep(0.5)
    raise AssertionError(f"{len(RunFolder(run).metrics())} rounds after {seconds} s")


def restart(stack, place, name, seconds=150):
    """Start a client again and again, as its unit does, until the server takes it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        process = stack.enter_context(client(place, name))
        try:
            process.wait(15)  # Flower keeps the old connection for a minute.
        except subprocess.TimeoutExpired:
            return
    raise AssertionError((place / f"{name}.log").read_text()[-2000:])


def test_a_killed_server_is_started_again_and_the_run_continued(place):
    folder, run = place / "federation", place / "run"
    changes = {"train.rounds": 4, "train.checkpoint-every": 1}
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(server(place))
        await_text(place / "server.log", "Ctrl-C ends it")
        for name in CLIENTS:
            stack.enter_context(client(place, name))
        await_online(folder)
        settings = settings_file(run, changes)
        submitted = start(
            "deploy", "run", settings, "--federation", folder, "--out", run
        )
        await_rounds(run, 2)
        kill(first)
        said, _ = submitted.communicate(timeout=180)
        assert submitted.returncode != 0
        assert "--resume" in said
        (place / "server.log").write_text("")
        stack.enter_context(server(place))
        await_text(place / "server.log", "Ctrl-C ends it")
        assert "registered" not in (place / "server.log").read_text()
        await_online(folder, 180)
        done = cli("deploy", "run", "--federation", folder, "--resume", run)
        assert done.returncode == 0, done.stderr
    rows = RunFolder(run).metrics()
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert RunFolder(run).finished


def test_a_killed_client_is_started_again_and_takes_part(place):
    folder, run = place / "federation", place / "run"
    changes = {
        "train.rounds": 9,
        "train.min-updates": 2,
        "train.timeout": 60,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(server(place))
        await_text(place / "server.log", "Ctrl-C ends it")
        running = [stack.enter_context(client(place, name)) for name in CLIENTS]
        await_online(folder)
        settings = settings_file(run, changes)
        submitted = start(
            "deploy", "run", settings, "--federation", folder, "--out", run
        )
        await_rounds(run, 1)
        kill(running[0])
        restart(stack, place, CLIENTS[0])
        said, _ = submitted.communicate(timeout=500)
        assert submitted.returncode == 0, said
    rows = RunFolder(run).metrics()
    assert [row["round"] for row in rows] == list(range(1, 10))
    assert all(row["clients"] >= 2 for row in rows)
    assert rows[-1]["clients"] == 3


def test_a_removed_client_is_refused_and_a_new_key_is_let_in(place):
    with everybody_online(place) as folder:
        gone = CLIENTS[0]
        removed = cli("deploy", "remove", folder, gone)
        assert f"client {gone}: removed" in removed.stdout, removed.stderr
        refused = cli("deploy", "client", folder / "clients" / gone, timeout=180)
        assert refused.returncode != 0
        (folder / "clients" / gone).rename(place / "old")
        added = cli("deploy", "add", folder, gone)
        assert f"client {gone}: registered" in added.stdout, added.stderr
        (place / "old" / "share").rename(folder / "clients" / gone / "share")
        text = (place / "old" / "client.toml").read_text()
        (folder / "clients" / gone / "client.toml").write_text(text)
        with client(place, gone):
            await_online(folder)
            done = deploy_run(folder, place / "run", **{"train.rounds": 1})
            assert done.returncode == 0, done.stderr


def test_without_tls_only_where_it_is_typed_out_and_said(place):
    folder, run = place / "federation", place / "run"
    with contextlib.ExitStack() as stack:
        log = place / "server.log"
        stack.enter_context(service(log, "deploy", "server", folder, "--insecure"))
        await_text(log, "Ctrl-C ends it")
        assert "no encryption" in log.read_text()
        for name in CLIENTS:
            own = folder / "clients" / name
            out = place / f"{name}.log"
            stack.enter_context(service(out, "deploy", "client", own, "--insecure"))
        settings = settings_file(run, {"train.rounds": 1})
        asked = ("deploy", "run", settings, "--federation", folder, "--out", run)
        refused = cli(*asked)
        assert refused.returncode != 0
        assert not run.exists()
        done = cli(*asked, "--insecure")
        assert done.returncode == 0, done.stderr
        assert RunFolder(run).metrics()[0]["clients"] == 3
        status = cli("deploy", "status", folder, "--insecure")
        assert status.stdout.count("online") == 3
