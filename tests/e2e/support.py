"""What the end-to-end tests share: starting runs, and seeing what they left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

import psutil

from instahide_fl.child_processes import MARK
from instahide_fl.config import Config
from instahide_fl.flower.app_bundle import stage_app
from instahide_fl.run_folder import RunFolder

# Where this test process and all its children put temporary files; by this variable its
# processes are told apart from those of tests that run beside it. Short: the paths of
# Ray's sockets must stay under 108 characters.
SCRATCH = tempfile.mkdtemp(prefix="e2e-")
os.environ["TMPDIR"] = tempfile.tempdir = SCRATCH
# After the folders in it, which multiprocessing removes at -100.
Finalize(None, shutil.rmtree, args=(SCRATCH, True), exitpriority=-200)

COMMAND = (sys.executable, "-c", "from instahide_fl.cli import main; main()")

SMALL = {
    "train.rounds": 3,
    "train.batch-size": 16,
    "partition.num-clients": 5,
    "train.clients-per-round": 3,
    "model.width": 4,
}

# A client that counts its rounds in its state, writes them down, and misbehaves as the
# variable FAULTS says: "ROUND CLIENT ACTION; ...".
FAULTY = """

import os, signal, time
from pathlib import Path

from flwr.app import MetricRecord

_train = app._registered_funcs["train.default"]


def _act(action):
    if action == "raise":
        raise ValueError("on purpose")
    if action == "memory":
        raise MemoryError
    if action == "exit":
        raise SystemExit(3)
    if action == "hang":
        time.sleep(3600)
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "die-once":
        flag = Path(os.environ["FAULT_FLAG"])
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def _count(message, context):
    client = context.node_config["partition-id"]
    seen = context.state.metric_records.get("seen", {"rounds": 0})["rounds"] + 1
    context.state["seen"] = MetricRecord({"rounds": seen})
    with Path(os.environ["FAULT_FLAG"]).with_suffix(".seen").open("a") as file:
        print(message.metadata.group_id, client, seen, file=file)


def _faulty(message, context):
    _count(message, context)
    for fault in os.environ.get("FAULTS", "").split(";"):
        if not fault.strip():
            continue
        number, client, action = fault.split()
        if message.metadata.group_id == number:
            if str(context.node_config["partition-id"]) == client:
                _act(action)
    return _train(message, context)


app._registered_funcs["train.default"] = _faulty
"""


def private_homes():
    return list(Path(SCRATCH).glob("ihfl-*"))


def processes():
    """All children and their daemons, wherever they are in the process tree."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get("TMPDIR") == SCRATCH:
                found.append(process)
        except psutil.Error:
            continue
    return [one for one in found if one.pid != os.getpid()]


def marked_processes():
    """Command lines by process id of those that a launch is responsible for."""
    found = {}
    for process in processes():
        with contextlib.suppress(psutil.Error):
            if MARK in process.environ():
                found[process.pid] = process.cmdline()
    return found


def listening(pids):
    """Return address and port of everything that processes listen on."""
    sockets = set()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            sockets |= {
                (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
                for connection in psutil.Process(pid).net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
    return sockets


def start(engine, path, **changes):
    """Run in this process."""
    config = Config().with_values({**SMALL, **changes})
    folder = RunFolder.create(path, config)
    engine(config.with_values({"output.folder": str(path)}), folder)
    return folder


def faulty_app(target):
    """Copy the app with clients that misbehave on demand."""
    stage_app(target)
    with (target / "clients" / "app.py").open("a") as file:
        file.write(FAULTY)
    return target


def command_line(path, engine, app=None, faults="", **changes):
    """Run `instahide-fl run` as users do, in its own process and of any app."""
    settings = {**SMALL, **changes}
    assignments = [f"--set={key}={value}" for key, value in settings.items()]
    environment = {
        **os.environ,
        "FAULTS": faults,
        "FAULT_FLAG": str(path.with_suffix(".flag")),
        **({"PYTHONPATH": str(app)} if app else {}),
    }
    done = subprocess.run(
        [*COMMAND, "run", "--engine", engine, "--out", str(path), *assignments],
        env=environment,
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, RunFolder(path)


def model_bytes(folder):
    return (folder.path / "model.safetensors").read_bytes()
