"""Ctrl-C at any moment of any command: exit code 130, and one line that says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.deployed import cli
from tests.e2e.support import COMMAND, marked_processes, private_homes

# The command line, which sends itself SIGINT at the n-th file that it opens or imports.
INTERRUPTED = """
import os, signal, sys

count, last = 0, int(sys.argv.pop(1))

def watch(event, arguments):
    global count
    if event in ("import", "open"):
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGINT)

from instahide_fl.cli import main
sys.addaudithook(watch)
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [1, 1500, *(pytest.param(n, marks=pytest.mark.long) for n in range(40, 3000, 300))],
)
def test_a_command_is_interrupted_while_it_is_loaded_and_while_it_works(
    tmp_path, moment
):
    command = [sys.executable, "-c", INTERRUPTED, str(moment), "data", "info"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")


def interrupt(process):
    """Send SIGINT to a process and its children, as a terminal does."""
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=200)
    return process.returncode, err


def start(folder, *arguments):
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def await_that(condition, process):
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, process.kill()
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ray", "flower"])
def test_an_engine_is_interrupted_while_it_starts(tmp_path, engine):
    sets = ("--set=resources.workers=1", "--set=train.rounds=100000")
    process = start(tmp_path, "run", "--engine", engine, "--out", "run", *sets)
    await_that(marked_processes, process)
    assert interrupt(process) == (
        130,
        "interrupted: continue with instahide-fl run --resume run\n",
    )
    assert not marked_processes()
    assert private_homes() == []


STUDY = """
title = "One run"
[base.train]
rounds = 100000
[[methods]]
name = "plain"
"""


@pytest.mark.slow
def test_a_study_is_interrupted_while_its_processes_start(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    process = start(tmp_path, "compare", "study.toml", "--out", "study")
    await_that((tmp_path / "study" / "study.json").exists, process)
    assert interrupt(process) == (
        130,
        "interrupted: add --resume to the same command to finish what is missing\n",
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "ended\n"), (signal.SIGTERM, 0, "")],
)
def test_a_service_ends_by_ctrl_c_and_by_sigterm(tmp_path, number, code, line):
    """A supervisor's SIGTERM is its ordinary end."""
    cli("deploy", "init", tmp_path / "federation", "--clients", "east")
    folder = tmp_path / "federation" / "clients" / "east"
    process = start(tmp_path, "deploy", "client", folder)
    await_that((folder / "state" / "flower").exists, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == code
    assert err.endswith(line)
    assert "Traceback" not in err
