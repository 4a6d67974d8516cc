"""Real Flower and real Ray: the bytes of inline, and an end that can be trusted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from instahide_fl.config import Config
from instahide_fl.engine.flower import run_flower
from instahide_fl.engine.inline import run_inline
from instahide_fl.engine.processes import MARK, end_marked, marked_environment
from instahide_fl.errors import RoundError
from instahide_fl.run_folder import RunFolder

pytestmark = pytest.mark.slow

SMALL = {
    "train.rounds": 3,
    "train.batch-size": 16,
    "partition.num-clients": 5,
    "train.clients-per-round": 3,
    "model.width": 4,
}


STARTED = time.time()  # what others left on this machine before is not ours


def private_homes():
    found = Path(tempfile.gettempdir()).glob("ihfl-*")
    return [path for path in found if path.stat().st_mtime > STARTED]


def marked_processes():
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.create_time() < STARTED:
                continue
            if MARK in process.environ():
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found


def start(engine, path, **changes):
    config = Config().with_values({**SMALL, **changes})
    folder = RunFolder.create(path, config)
    engine(config.with_values({"output.folder": str(path)}), folder)
    return folder


@pytest.mark.parametrize(("mode", "workers"), [("gradient", 1), ("update", 2)])
def test_flower_on_ray_gives_the_bytes_of_inline(tmp_path, mode, workers):
    changes = {"train.mode": mode, "resources.workers": workers}
    inline = start(run_inline, tmp_path / "inline", **changes)
    flower = start(run_flower, tmp_path / "flower", **changes)
    models = [
        (folder.path / "model.safetensors").read_bytes() for folder in (inline, flower)
    ]
    assert models[0] == models[1]
    keep = ("round", "test_accuracy", "train_loss", "clients", "bytes_up")
    rows = [
        [{key: row[key] for key in keep} for row in folder.metrics()]
        for folder in (inline, flower)
    ]
    assert rows[0] == rows[1]
    hashes = [f.read_json("provenance.json")["code_hash"] for f in (inline, flower)]
    assert hashes[0] == hashes[1]
    assert marked_processes() == []


def test_a_failed_run_fails_with_the_clients_reason(tmp_path):
    # The command line would have found this before; here the clients raise it.
    changes = {"pool.source": str(tmp_path / "nowhere")}
    expected = (
        r"^a client is not ready: pool\.source: no pool at .*nowhere .*\"photos\"$"
    )
    with pytest.raises(RoundError, match=expected):
        start(run_flower, tmp_path / "run", **changes)
    assert not RunFolder(tmp_path / "run").finished
    assert marked_processes() == []


def test_ctrl_c_leaves_no_process_behind(tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from instahide_fl.cli import main; main()", "run"),
            *("--out", "run", "--set", "train.checkpoint-every=1"),
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoint" / "state.safetensors").exists():
        assert time.monotonic() < deadline, process.kill()
        time.sleep(0.1)
    assert marked_processes()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "--resume run" in err
    assert marked_processes() == []
    assert private_homes() == []


def test_daemons_that_left_the_process_tree_are_ended():
    with marked_environment() as environment:
        script = (
            "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(99)"
        )
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)
        assert len(marked_processes()) == 1
    assert marked_processes() == []
    end_marked("a mark that nobody carries")
