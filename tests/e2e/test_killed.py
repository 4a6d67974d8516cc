"""kill -9 of a command: nothing that it started goes on, and no folder is left over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from instahide_fl.child_processes import MARK, OrphanWatch, orphan_watch
from instahide_fl.engine.private_ray import LOOPBACK_ADDRESSES, TOKEN
from instahide_fl.private_folder import LOCK, private_folder
from instahide_fl.run_folder import RunFolder
from tests.e2e.deployed import (
    await_online,
    await_text,
    cli,
    client,
    make_federation,
    server,
    service,
    settings_file,
)
from tests.e2e.support import (
    COMMAND,
    listening,
    marked_processes,
    private_homes,
    processes,
)

GONE_SECONDS = 20  # for children to end once their parent was killed


def await_that(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait(30)


# Starts a daemon that has left its process tree, and one that hides its mark; waits.
PARENT = """
import os, subprocess, sys, time
from pathlib import Path
from instahide_fl.child_processes import MARK, OrphanWatch
watch = OrphanWatch()
watch.add_folder(Path(sys.argv[1]))
sleep = "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(99)"
subprocess.run([sys.executable, "-c", sleep], env={**os.environ, MARK: watch.mark})
hidden = subprocess.Popen(["sleep", "98"], start_new_session=True)
watch.add_session(hidden.pid)
print("started", flush=True)
time.sleep(99)
"""


def test_daemons_and_folders_of_a_killed_process_go(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    before = {process.pid for process in processes()}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, folder], stdout=subprocess.PIPE
    )
    assert parent.stdout.readline() == b"started\n"
    parent.stdout.close()

    def started():
        return {process.pid for process in processes()} - before - {parent.pid}

    # The daemon is found by its environment, which it has a moment after its parent.
    await_that(lambda: len(started()) == 2, GONE_SECONDS)
    kill(parent)
    await_that(lambda: not started(), GONE_SECONDS)
    await_that(lambda: not folder.exists(), GONE_SECONDS)


def test_a_watch_that_is_dismissed_ends_nothing(tmp_path):
    watch = OrphanWatch()
    watch.add_folder(tmp_path)
    environment = {**os.environ, MARK: watch.mark}
    with subprocess.Popen(["sleep", "97"], env=environment) as process:
        watch.dismiss()
        watch.close()
        assert process.poll() is None
        process.kill()
    assert tmp_path.exists()


def test_a_clean_up_that_is_interrupted_is_finished_by_the_watch(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), orphan_watch() as watch:
        watch.add_folder(tmp_path)
        environment = {**os.environ, MARK: watch.mark}
        process = subprocess.Popen(["sleep", "96"], env=environment)
        raise KeyboardInterrupt
    assert process.wait(30) == -signal.SIGKILL
    assert not tmp_path.exists()


def test_the_next_start_removes_what_a_killed_one_left(monkeypatch):
    """And neither the folder of a living one nor that of another kind."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    try:
        stale, other = place / "ihfl-stale", place / "ihfl-other"
        for folder, name in ((stale, LOCK), (other, "file")):
            folder.mkdir()
            (folder / name).touch()
        (stale / "ray").mkdir()
        (stale / "ray" / "link").symlink_to(other)
        with private_folder() as first, private_folder() as second:
            assert first.exists()
            assert second.exists()
            assert not stale.exists()
            assert (other / "file").exists()
        (other / "file").unlink()
        os.rmdir(other)
    finally:
        place.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["ray", pytest.param("flower", marks=pytest.mark.long)]
)
def test_a_killed_run_leaves_no_process_and_no_folder(tmp_path, engine):
    sets = ("--set=resources.workers=1", "--set=train.rounds=100000")
    before = marked_processes().keys()
    run = subprocess.Popen(
        [*COMMAND, "run", "--engine", engine, "--out", "run", *sets],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    await_that(lambda: RunFolder(tmp_path / "run").metrics())
    children = marked_processes().keys() - before
    assert len(children) > 2
    assert {host for host, _ in listening(children)} <= set(LOOPBACK_ADDRESSES)
    tokens = set()
    for pid in children:
        with contextlib.suppress(psutil.Error):
            tokens.add(psutil.Process(pid).environ().get(TOKEN))
    assert len(tokens) == 1
    assert None not in tokens
    kill(run)
    await_that(lambda: not marked_processes().keys() - before, GONE_SECONDS)
    await_that(lambda: not private_homes(), GONE_SECONDS)


STUDY = """
title = "One run"
[base.train]
rounds = 100000
[base.resources]
workers = 1
[[methods]]
name = "plain"
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_study_leaves_no_process_and_no_folder(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    before = {process.pid for process in processes()}
    study = subprocess.Popen(
        [*COMMAND, "compare", "study.toml", "--out", "study"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    run = RunFolder(tmp_path / "study" / "runs" / "plain-seed-0")
    await_that(lambda: run.metrics())
    started = {process.pid for process in processes()} - before
    assert len(started) >= 2
    kill(study)
    await_that(lambda: not {p.pid for p in processes()} & started, GONE_SECONDS)
    await_that(lambda: not private_homes(), GONE_SECONDS)


def below(process):
    """Return a process's children and theirs, and those of its watch."""
    return psutil.Process(process.pid).children(recursive=True)


def living(every):
    alive = []
    for process in every:
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process.cmdline())
    return alive


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_client_and_a_killed_server_leave_no_orphans(tmp_path):
    """Killed in the middle of a run, with the app's processes at work."""
    make_federation(tmp_path, clients=("east",))
    folder, out = tmp_path / "federation", tmp_path / "run"
    changes = {
        "train.rounds": 100_000,
        "partition.num-clients": 1,
        "train.clients-per-round": 1,
    }
    settings = settings_file(out, changes)
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(server(tmp_path))]
        await_text(tmp_path / "server.log", "Ctrl-C ends it")
        started.append(stack.enter_context(client(tmp_path, "east")))
        await_online(folder)
        run = ("deploy", "run", settings, "--federation", folder, "--out", out)
        stack.enter_context(service(tmp_path / "run.log", *run))
        await_that(lambda: RunFolder(out).metrics())
        for command in reversed(started):
            children = below(command)
            assert len(living(children)) >= 2
            kill(command)
            await_that(lambda every=children: not living(every), GONE_SECONDS)
    assert cli("deploy", "status", folder).returncode != 0
