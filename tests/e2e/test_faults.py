"""What real machines do, on real processes: one federation over TLS with node keys.

Stock Flower on loopback, each client with its own folder. The bundle is patched so that
clients misbehave where a test says so; a deployment that pins its code would refuse it.
Longer campaigns: `python -m benchmarks.fault_campaign`, `python -m benchmarks.soak`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
import torch

from benchmarks.fault_campaign import Campaign
from benchmarks.loopback import start_federation, supernode
from instahide_fl.config import Config
from instahide_fl.data.pool import MixingPool
from instahide_fl.deployment.certificates import new_authority, new_node_key
from instahide_fl.deployment.check_results import CheckResult
from instahide_fl.deployment.connection_checks import Address, check_connection
from instahide_fl.deployment.federation_files import write_pair
from instahide_fl.errors import ProtocolError
from instahide_fl.run_folder import RunFolder
from instahide_fl.tensor_files import load_tensors

pytestmark = [pytest.mark.slow, pytest.mark.faults]

SETTINGS = {
    "train.batch-size": 16,
    "train.timeout": 45.0,
    "train.min-updates": 1,
    "train.checkpoint-every": 1,
    "train.evaluate-every": 2,
    "model.width": 4,
    "data.train-rows": "0:600",
}
# Clients do what the file FAULTS says: "ROUND CLIENT ACTION" in each line.
PATCH = """

import os, time
from pathlib import Path

_train = app._registered_funcs["train.default"]


def _faulty(message, context):
    name, number = context.node_config["client-name"], message.metadata.group_id
    lines = Path(os.environ["FAULTS"]).read_text().splitlines()
    wanted = [line.split() for line in lines]
    action = next((a for r, c, a in wanted if (r, c) == (number, name)), "")
    folder = Path(str(context.node_config["exposures-file"])).parent
    filling = folder / "filling"
    if action == "full":
        with filling.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
    if action == "slow":
        time.sleep(70)
    try:
        reply = _train(message, context)
    finally:
        filling.unlink(missing_ok=True)
    if action in ("nan", "inf"):
        from flwr.app import Array, ArrayRecord

        arrays = reply.content["arrays"]
        reply.content["arrays"] = ArrayRecord(
            {n: Array(a.numpy() * float(action)) for n, a in arrays.items()}
        )
    return reply


app._registered_funcs["train.default"] = _faulty
"""


def patched(app):
    with (app / "clients" / "app.py").open("a") as file:
        file.write(PATCH)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("faults")
    faults = place / "faults.txt"
    faults.write_text("")
    small = place / "small-disk"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        pool = MixingPool.from_images(torch.randint(0, 256, (50, 1, 28, 28)).byte())
        for name in ("site-0", "site-1", "site-2"):
            home = place / "f" / "clients" / name
            home.mkdir(parents=True)
            pool.save(home / "pool")
        (place / "f" / "clients" / "site-2" / "kept").symlink_to(small)
        with start_federation(
            place / "f",
            3,
            Config().with_values(SETTINGS),
            patched,
            {"FAULTS": str(faults)},
        ) as started:
            started.faults = faults
            yield started
    finally:
        subprocess.run(["umount", str(small)], check=False)


def await_end(made, run, seconds, when=lambda rounds: None):
    """Wait for the end of a run, and do something after each round."""
    deadline, seen = time.monotonic() + seconds, -1
    folder = RunFolder(run)
    while time.monotonic() < deadline:
        made.tend()
        if folder.finished or folder.failure():
            return folder
        if (rounds := len(folder.metrics())) != seen:
            seen = rounds
            when(rounds)
        time.sleep(0.3)
    raise AssertionError(f"the run hangs: {folder.metrics()}")


def with_rounds(made, rounds):
    made.config = made.config.with_values({"train.rounds": rounds})
    return made


def test_rounds_go_on_without_clients_that_send_nonsense_stall_or_die(made):
    made.faults.write_text("2 site-0 nan\n2 site-1 inf\n3 site-2 full\n4 site-0 slow\n")
    run = made.folder / "faulty"
    with_rounds(made, 5).submit(run, resume=False)

    def kill_one(rounds):
        if rounds == 3:
            made.services["site-1"].kill()

    folder = await_end(made, run, 300, kill_one)
    assert folder.finished, folder.failure()
    rows = folder.metrics()
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["clients"] + row["failures"] == 3 for row in rows)
    reasons = [row["failure_reasons"] for row in rows]
    assert reasons[0] == {}
    assert set(reasons[1]) == {"site-0", "site-1"}
    assert all("not finite" in text for text in reasons[1].values())
    assert set(reasons[2]) == {"site-2"}
    assert "No space left on device" in reasons[2]["site-2"]
    assert "no answer within 45 s" in reasons[3]["site-0"]
    assert "site-1" in reasons[3]
    tensors, _ = load_tensors(run / "model.safetensors")
    assert all(one.isfinite().all() for one in tensors.values())


def test_a_killed_server_is_resumed_once_all_clients_are_back(made):
    """Also shows that the client killed before has come back."""
    made.faults.write_text("")
    run = made.folder / "killed"
    with_rounds(made, 4)
    killed = []

    def kill_the_server(campaign):
        if not killed and len(RunFolder(campaign.run).metrics()) >= 2:
            killed.append(True)
            made.services["superlink"].kill()

    rng = np.random.default_rng(0)
    driven = Campaign(made, run, rng, kills=0, look=kill_the_server)
    driven.drive()
    rows = RunFolder(run).metrics()
    assert killed
    assert driven.attempts >= 2
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["test_accuracy"] is not None


def test_another_pool_is_refused_by_name(made):
    run = made.folder / "pools"
    place = made.folder / "clients" / "site-1" / "pool"
    shutil.rmtree(place)
    MixingPool.from_images(torch.zeros(50, 1, 28, 28).byte()).save(place)
    with_rounds(made, 2).submit(run, resume=False)
    failure = await_end(made, run, 120).failure()
    assert isinstance(failure, ProtocolError)
    assert "clients site-0 and site-1 hold different pools" in str(failure)


def log_of(service, words, seconds=60):
    """Wait until a service's log says one of some words, or it has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        text = service.log.read_text(errors="replace")
        if re.search(words, text):
            return text
        time.sleep(0.3)
    raise AssertionError(f"{service.name} never says {words}: {text[-2000:]}")


def test_another_authority_is_refused_and_the_doctor_says_so(made, tmp_path):
    write_pair(new_authority("another"), tmp_path / "ca.key", tmp_path / "ca.crt")
    key = new_node_key("stranger")
    write_pair(key, tmp_path / "node.key", tmp_path / "node.key.pub")
    (tmp_path / "kept").mkdir()
    address = f"127.0.0.1:{made.port}"
    stranger = supernode("stranger", tmp_path, address, tmp_path / "ca.crt")
    stranger.start(made.environment, tmp_path)
    try:
        log_of(stranger, "Connection attempt failed|certificate verify failed")
    finally:
        stranger.kill()
    found = list(check_connection(Address("127.0.0.1", made.port), tmp_path / "ca.crt"))
    assert CheckResult("TLS", False, next(f.text for f in found if not f.ok)) in found
    assert "of another CA" in found[-1].text


SKEWED = """
import datetime

import flwr.supercore.date as date

_now = date.now
date.now = lambda: _now() + datetime.timedelta(seconds=600)
"""


def test_a_clock_that_runs_ahead_is_refused(made, tmp_path):
    """The client's process sees another time; its clock itself cannot be set here."""
    place = made.folder / "clients" / "late"
    public = place / "node.key.pub"
    write_pair(new_node_key("late"), place / "node.key", public)
    made.flwr.query("supernode", "register", str(public), "federation")
    (tmp_path / "sitecustomize.py").write_text(SKEWED)
    late = supernode("late", place, f"127.0.0.1:{made.port}", made.folder / "ca.crt")
    late.start({**made.environment, "PYTHONPATH": str(tmp_path)}, tmp_path)
    try:
        said = log_of(late, "(?i)failed|error|denied|exit code")
    finally:
        late.kill()
    assert "Traceback" not in said.splitlines()[0]
