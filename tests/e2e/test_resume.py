"""Runs whose process is killed (SIGKILL), wherever it is, and resumed.

The process kills itself at a chosen one of its calls to the operating system that open
a file of the run folder to write it, or give a file its final name: between two rounds,
with a line half there, with a checkpoint that is written but not in place.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from instahide_fl.run_folder import METRICS, RunFolder
from tests.e2e.support import SMALL, model_bytes

KILLING = """
import os, signal, sys

left = int(os.environ["KILL_AFTER"])
folder = os.environ["KILL_FOLDER"]
count = 0


def watch(event, arguments):
    global count
    if event == "open":
        path, mode = str(arguments[0]), str(arguments[1])
        if not path.startswith(folder) or not set(mode) & set("wax+"):
            return
    elif event != "os.rename" or not str(arguments[1]).startswith(folder):
        return
    count += 1
    if count == left:
        os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(watch)
from instahide_fl.cli import main

try:
    main()
finally:
    print("calls:", count, file=sys.stderr)
"""
TIMINGS = (
    *("seconds", "compute_seconds", "transfer_seconds"),
    *("aggregation_seconds", "evaluation_seconds"),
)
RUN = {
    **SMALL,
    "train.rounds": 8,
    "train.checkpoint-every": 3,
    "train.evaluate-every": 2,
}


def execute(path, *arguments, kill_after=0):
    return subprocess.run(
        [sys.executable, "-c", KILLING, "run", "--engine", "inline", *arguments],
        env={**os.environ, "KILL_AFTER": str(kill_after), "KILL_FOLDER": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def without_timings(folder):
    return [
        {name: value for name, value in row.items() if name not in TIMINGS}
        for row in folder.metrics()
    ]


def kept_files(path):
    return sorted(
        str(file.relative_to(path))
        for file in path.rglob("*")
        if file.is_file() and file.parent.name != "logs"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "train.mode": "update",
            "train.control-variates": "true",
            "server.optimizer": "adam",
            "instahide.max-exposures": "60",
        },
        {
            "defense.differential-privacy": "local",
            "server.aggregation": "mean",
            "instahide.refresh": "3",
            "record.rounds": "all",
        },
    ],
    ids=["gradient", "scaffold", "private"],
)
def test_a_run_killed_again_and_again_ends_at_the_same_bits(tmp_path, changes):
    settings = [f"--set={k}={v}" for k, v in {**RUN, **changes}.items()]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = execute(whole, "--out", str(whole), *settings)
    assert done.returncode == 0, done.stderr
    calls = int(done.stderr.split("calls:")[1])
    rng = np.random.default_rng(len(changes))
    kills = 0
    for _ in range(20):
        fresh = not (broken / "config.toml").exists()
        arguments = ("--out", str(broken), *settings) if fresh else ("--resume", broken)
        # The last attempts are let through, or a run might never end.
        after = int(rng.integers(2, calls)) if kills < 4 else 0
        done = execute(broken, *map(str, arguments), kill_after=after)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
    assert kills
    assert model_bytes(RunFolder(broken)) == model_bytes(RunFolder(whole))
    assert without_timings(RunFolder(broken)) == without_timings(RunFolder(whole))
    assert kept_files(broken) == kept_files(whole)


def limited(size):
    """Run a command whose files may not grow beyond a size, as on a full disk."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_a_full_disk_is_explained_and_the_checkpoint_before_it_stays(tmp_path):
    settings = [f"--set={k}={v}" for k, v in {**RUN, "model.width": 32}.items()]
    path, whole = tmp_path / "run", tmp_path / "whole"
    assert execute(whole, "--out", str(whole), *settings).returncode == 0
    # Killed after its first checkpoint, then resumed where nothing large can be.
    for after in range(20, 80, 4):
        if not path.exists():
            execute(path, "--out", str(path), *settings, kill_after=after)
        if (path / "checkpoint" / "state.safetensors").exists():
            break
        subprocess.run(["rm", "-rf", str(path)], check=True)
    before = (path / "checkpoint" / "state.safetensors").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", KILLING, "run", "--engine", "inline", "--resume", path],
        env={**os.environ, "KILL_AFTER": "0", "KILL_FOLDER": str(path)},
        preexec_fn=limited(len(before) - 1),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    said = done.stderr.split("calls:")[0]
    assert f"cannot write {path}/checkpoint/state.safetensors: File too large" in said
    assert "Traceback" not in said
    assert (path / "checkpoint" / "state.safetensors").read_bytes() == before
    assert not list(path.rglob("*.part"))
    assert execute(path, "--resume", str(path)).returncode == 0
    assert model_bytes(RunFolder(path)) == model_bytes(RunFolder(whole))
    assert (path / METRICS).read_text().count("\n") == RUN["train.rounds"]
