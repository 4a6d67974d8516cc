"""Runs whose process is killed (SIGKILL), wherever it is, and resumed.

The process kills itself at a chosen one of its calls to the operating system that open
a file of the run folder to write it, or give a file its final name: between two rounds,
with a line half there, with a checkpoint that is written but not in place.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from functools import partial
from multiprocessing.util import Finalize

import numpy as np
import pytest

from instahide_fl.run_folder import METRICS, RunFolder
from tests.e2e.forked import run_command
from tests.e2e.support import SMALL, model_bytes

TIMINGS = (
    *("seconds", "compute_seconds", "transfer_seconds"),
    *("aggregation_seconds", "evaluation_seconds"),
)
RUN = {
    **SMALL,
    "data.train-rows": "0:200",
    "train.rounds": 8,
    "train.checkpoint-every": 3,
    "train.evaluate-every": 2,
}


def kill_at(folder, number, counted):
    """Let this process kill itself at its call of a number; count the calls."""
    calls = 0

    def watch(event, arguments):
        nonlocal calls
        if event == "open":
            path, mode = str(arguments[0]), str(arguments[1])
            if not path.startswith(folder) or not set(mode) & set("wax+"):
                return
        elif event != "os.rename" or not str(arguments[1]).startswith(folder):
            return
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    Finalize(None, lambda: counted.write_text(str(calls)), exitpriority=0)


def limit_files(size):
    """Let no file of this process grow beyond a size, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def execute(path, *arguments, kill_after=0):
    """Run a command on a run folder; its calls are counted in a file beside it."""
    counted = path.with_suffix(".calls")
    prepare = partial(kill_at, f"{path}{os.sep}", kill_after, counted)
    command = ("run", "--engine", "inline", *arguments)
    return run_command(path.parent, *command, prepare=prepare)


def number_of_calls(path):
    return int(path.with_suffix(".calls").read_text())


def without_timings(folder):
    return [
        {name: value for name, value in row.items() if name not in TIMINGS}
        for row in folder.metrics()
    ]


def files_of(path):
    return sorted(
        str(file.relative_to(path))
        for file in path.rglob("*")
        if file.is_file() and file.parent.name != "logs"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {
                "train.mode": "update",
                "train.control-variates": "true",
                "server.optimizer": "adam",
                "instahide.max-exposures": "60",
            },
            id="scaffold",
        ),
        pytest.param({}, marks=pytest.mark.long, id="gradient"),
        pytest.param(
            {
                "defense.differential-privacy": "local",
                "server.aggregation": "mean",
                "instahide.refresh": "3",
                "record.rounds": "all",
            },
            marks=pytest.mark.long,
            id="private",
        ),
    ],
)
def test_a_run_killed_again_and_again_ends_at_the_same_bits(tmp_path, changes):
    settings = [f"--set={k}={v}" for k, v in {**RUN, **changes}.items()]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = execute(whole, "--out", whole, *settings)
    assert done.returncode == 0, done.stderr
    calls = number_of_calls(whole)
    rng = np.random.default_rng(len(changes))
    kills = 0
    for _ in range(20):
        fresh = not (broken / "config.toml").exists()
        arguments = ("--out", broken, *settings) if fresh else ("--resume", broken)
        # The last attempts are let through, or a run might never end.
        after = int(rng.integers(2, calls)) if kills < 4 else 0
        done = execute(broken, *arguments, kill_after=after)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
    assert kills
    assert model_bytes(RunFolder(broken)) == model_bytes(RunFolder(whole))
    assert without_timings(RunFolder(broken)) == without_timings(RunFolder(whole))
    assert files_of(broken) == files_of(whole)


@pytest.mark.slow
def test_a_full_disk_is_explained_and_the_checkpoint_before_it_stays(tmp_path):
    settings = [f"--set={k}={v}" for k, v in {**RUN, "model.width": 32}.items()]
    path, whole = tmp_path / "run", tmp_path / "whole"
    done = execute(whole, "--out", whole, *settings)
    assert done.returncode == 0, done.stderr
    # Killed after its first checkpoint, then resumed where nothing large can be.
    checkpoint = path / "checkpoint" / "state.safetensors"
    for after in range(number_of_calls(whole) // 2, number_of_calls(whole)):
        shutil.rmtree(path, ignore_errors=True)
        execute(path, "--out", path, *settings, kill_after=after)
        if checkpoint.exists():
            break
    before = checkpoint.read_bytes()
    limited = partial(limit_files, len(before) - 1)
    done = run_command(
        tmp_path, "run", "--engine", "inline", "--resume", path, prepare=limited
    )
    assert done.returncode == 2, done.stderr
    assert f"cannot write {checkpoint}: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (path / "summary.json").exists()
    assert checkpoint.read_bytes() == before
    assert not list(path.rglob("*.part"))
    assert execute(path, "--resume", path).returncode == 0
    assert model_bytes(RunFolder(path)) == model_bytes(RunFolder(whole))
    assert (path / METRICS).read_text().count("\n") == RUN["train.rounds"]
