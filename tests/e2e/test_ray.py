"""The Ray engine: the bytes of inline, whatever happens to its workers."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch

from instahide_fl.config import Config, ResourcesConfig
from instahide_fl.data.federated_data import load_federated_data
from instahide_fl.engine.inline import run_inline
from instahide_fl.engine.logs import logging_to
from instahide_fl.engine.private_ray import CLUSTERS_SUPPORTED
from instahide_fl.engine.ray import worker_pool
from instahide_fl.engine.ray.cluster import ray_cluster
from instahide_fl.engine.ray.ray_grid import RayGrid, run_ray
from instahide_fl.errors import ConfigError, EngineError
from instahide_fl.evaluation.batches import BatchEvaluator, batches_of
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.in_process_grid import server_context
from instahide_fl.models.arrays import get_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.run_folder import RunFolder
from instahide_fl.transcript.recorded import read_transcript, recorded_rounds
from tests.e2e.support import (
    SMALL,
    command_line,
    faulty_app,
    marked_processes,
    model_bytes,
    processes,
    start,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ray_cluster(ResourcesConfig(workers=3), tmp_path_factory.mktemp("logs")):
        yield
    assert not marked_processes()


def run_on_cluster(path, plain=False, **changes):
    """Run on the module's cluster; `plain` makes single updates travel."""
    config = Config().with_values(
        {**SMALL, "resources.workers": 2, **changes, "output.folder": str(path)}
    )
    folder = RunFolder.create(path, config)
    log = path / "logs" / "run.log"
    with importable_app() as (_, server), logging_to(log), RayGrid(config) as grid:
        shown = _WithoutReducing(grid) if plain else grid
        server.app(shown, server_context(config.to_run_config()))
    return folder


class _WithoutReducing:
    """The same grid, but it hands every single reply to the server."""

    def __init__(self, grid):
        self._grid = grid

    def __getattr__(self, name):
        if name == "send_and_reduce":
            raise AttributeError(name)
        return getattr(self._grid, name)


SECURE = {"secure-aggregation.enabled": True}
LIMITED = {  # clients keep counters, and leave images out by them
    "data.train-rows": "0:150",
    "instahide.max-exposures": 2,
    "instahide.exposure-action": "stop",
}
MEAN = {"server.aggregation": "mean"}
EVALUATED = {  # every way to evaluate, and a checkpoint without an evaluation
    "data.validation-share": 0.1,
    "model.normalization": "local-batch",
    "train.evaluate-encodings": 2,
    "train.evaluate-every": 2,
    "train.checkpoint-every": 1,
}


def test_two_workers_give_the_bytes_and_the_transcripts_of_inline(tmp_path, cluster):
    changes = {
        "partition.scheme": "dirichlet",
        "record.rounds": "1, 3",
        "record.truth": True,
        **EVALUATED,
    }
    expected = start(run_inline, tmp_path / "inline", **changes)
    folder = run_on_cluster(tmp_path / "ray", **changes)
    assert_same_run(folder, expected)
    assert recorded_rounds(folder.path) == [1, 3]
    for number in (1, 3):
        inline, ray = (read_transcript(r.path, number) for r in (expected, folder))
        assert ray.updates.keys() == inline.updates.keys()
        for client, update in inline.updates.items():
            assert_same_arrays(update.arrays, ray.updates[client].arrays)
        assert_same_arrays(inline.aggregate, ray.aggregate)
        assert_same_arrays(inline.parameters, ray.parameters)


def long(changes):
    return pytest.param(changes, marks=pytest.mark.long)


@pytest.mark.parametrize(
    "changes",
    [
        {"train.mode": "update", "train.control-variates": True, **LIMITED},
        long(
            {
                "train.mode": "update",
                "data.train-rows": "0:200",
                "defense.differential-privacy": "local",
                "defense.transforms": "sign",
                "train.optimizer": "adamw",
                "train.clip-norm": 1.0,
                "server.ema": 0.5,
                "model.sign-invariant": "auto",
                **MEAN,
            }
        ),
        long({"train.mode": "update", "partition.scheme": "dirichlet"}),
        long({"server.aggregation": "median", "model.normalization": "batch"}),
        long({"server.optimizer": "adamw", "train.clip-norm": 0.5, "server.ema": 0.5}),
        long(SECURE),
        long(LIMITED),
        long({"defense.transforms": "prune, clip, noise"}),
        long(
            {"defense.differential-privacy": "dp-sgd", "instahide.method": "none"},
        ),
        long({"defense.differential-privacy": "central", **MEAN}),
    ],
)
def test_workers_keep_states_and_defences_as_inline_does(tmp_path, cluster, changes):
    expected = start(run_inline, tmp_path / "inline", **changes)
    assert_same_run(run_on_cluster(tmp_path / "ray", **changes), expected)


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [{"partition.scheme": "dirichlet"}, {"train.mode": "update"}, SECURE, EVALUATED],
)
def test_any_number_of_workers_gives_the_bytes_of_inline(tmp_path, cluster, changes):
    expected = start(run_inline, tmp_path / "inline", **changes)
    for workers in (1, 3):
        folder = run_on_cluster(
            tmp_path / str(workers), **changes, **{"resources.workers": workers}
        )
        assert_same_run(folder, expected)
    single = run_on_cluster(tmp_path / "plain", plain=True, **changes)
    assert_same_run(single, expected)


def assert_same_run(folder, expected):
    assert model_bytes(folder) == model_bytes(expected)
    names = (
        *("round", "test_accuracy", "test_loss", "test_accuracy_encoded"),
        *("validation_accuracy", "validation_loss"),
        *("train_loss", "clients", "bytes_up", "exposures", "epsilon"),
    )
    rows = [
        [{name: row.get(name) for name in names} for row in run.metrics()]
        for run in (expected, folder)
    ]
    assert rows[0] == rows[1]


def assert_same_arrays(expected, arrays):
    assert expected.keys() == arrays.keys()
    for name, array in expected.items():
        assert torch.equal(array, arrays[name]), name


@pytest.mark.long
@pytest.mark.parametrize(
    ("faults", "failures", "expected"),
    [
        (
            "1 0 raise; 2 1 die-once; 3 2 die",
            [1, 0, 1],
            ["client 0 failed: on purpose", "client 2 failed: its worker process died"],
        ),
        (
            "1 3 hang; 2 4 memory; 3 4 exit",
            [1, 1, 1, 0],
            [
                "client 3 failed: no answer within 20 s (train.timeout)",
                "client 4 failed: MemoryError",
                "client 4 failed: 3",
            ],
        ),
    ],
)
def test_a_round_goes_on_without_clients_that_fail_and_workers_are_replaced(
    tmp_path, faults, failures, expected
):
    app = faulty_app(tmp_path / "app")
    before = marked_processes().keys()
    changes = {
        "train.rounds": len(failures),
        "train.clients-per-round": 0,
        "train.min-updates": 4,
        "train.timeout": 20.0 if "hang" in faults else 120.0,
        "resources.workers": 2,
    }
    done, folder = command_line(tmp_path / "run", "ray", app, faults, **changes)
    assert done.returncode == 0, done.stderr
    assert [row["failures"] for row in folder.metrics()] == failures
    log = (folder.path / "logs" / "run.log").read_text()
    for sentence in expected:
        assert sentence in log
    assert not marked_processes().keys() - before


@pytest.mark.long
def test_too_few_updates_end_the_run_with_the_reason(tmp_path):
    app = faulty_app(tmp_path / "app")
    before = marked_processes().keys()
    changes = {"train.clients-per-round": 0}
    done, folder = command_line(tmp_path / "run", "ray", app, "2 1 die", **changes)
    assert done.returncode != 0
    assert "4 of 5 clients" in done.stderr
    assert "client 1: its worker process died" in " ".join(done.stderr.split())
    assert not folder.finished
    assert not marked_processes().keys() - before


@pytest.mark.long
def test_a_worker_killed_from_outside_changes_nothing(tmp_path, cluster):
    changes = {"train.rounds": 30, "resources.workers": 2}
    expected = start(run_inline, tmp_path / "inline", **changes)
    config = Config().with_values(
        {**SMALL, **changes, "output.folder": str(tmp_path / "run")}
    )
    folder = RunFolder.create(tmp_path / "run", config)
    log = tmp_path / "log"
    with importable_app() as (_, server), logging_to(log), RayGrid(config) as grid:
        os.kill(_await_worker().pid, signal.SIGKILL)
        server.app(grid, server_context(config.to_run_config()))
    assert model_bytes(folder) == model_bytes(expected)
    assert sum(row["failures"] for row in folder.metrics()) == 0


@pytest.mark.long
def test_a_worker_killed_in_an_evaluation_changes_nothing(tmp_path, cluster):
    config = Config().with_values({**SMALL, "resources.workers": 2})
    data = load_federated_data(config)
    model = build_model(config.network, data.dataset.image_shape, 10, config.seed)
    arrays, batches = get_arrays(model), batches_of("test", len(data.dataset.test))
    evaluator = BatchEvaluator(model, data.dataset, config, data.pool)
    expected = evaluator.evaluate_batches(arrays, 1, batches)
    with logging_to(tmp_path / "log"), RayGrid(config) as grid:
        assert grid.evaluate_batches(arrays, 1, batches) == expected
        with killing_a_worker(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker_pool, "MAX_ATTEMPTS", 1)
            message = r"round 1: the evaluation of batch \d of the test images failed: "
            with pytest.raises(EngineError, match=message):
                grid.evaluate_batches(arrays, 1, batches)
        with killing_a_worker():
            assert grid.evaluate_batches(arrays, 1, batches) == expected
    assert (tmp_path / "log").read_text().count(" died: ") == 2


@contextlib.contextmanager
def killing_a_worker():
    """Kill a worker as soon as the first batches are on their way to it."""
    submit, killed = worker_pool.WorkerPool.submit, []

    def submit_and_kill(pool, job, assignments):
        submit(pool, job, assignments)
        pool._dispatch()
        if not killed:
            os.kill(_await_worker().pid, signal.SIGKILL)
            killed.append(True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_pool.WorkerPool, "submit", submit_and_kill)
        yield


def test_more_workers_than_fit_and_a_second_ray_are_refused(tmp_path, cluster):
    with pytest.raises(ConfigError, match=r"resources\.workers = 4 .*room for 3"):
        run_on_cluster(tmp_path / "a", **{"resources.workers": 4})
    with pytest.raises(EngineError, match=r"connected to Ray already"):
        start(run_ray, tmp_path / "b")


@pytest.mark.long
def test_a_cluster_of_two_nodes_is_joined_by_its_token_and_left_alone(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Set in this process while the cluster of this file's other tests is open.
    monkeypatch.delenv(CLUSTERS_SUPPORTED, raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tempfile.mkdtemp(prefix="ray-")
    before = {process.pid for process in processes()}
    address, nodes = f"127.0.0.1:{port}", []
    try:
        head = ("--head", f"--port={port}", "--include-dashboard=false")
        at_home = ("--node-ip-address=127.0.0.1", f"--temp-dir={home}")
        nodes.append(_join(address, 1, tmp_path, (*head, *at_home)))
        nodes.append(_join(address, 2, tmp_path, (f"--address={address}",)))
        # Each node has one CPU: two workers fit only if both nodes have one.
        changes = {"resources.ray-address": address, "resources.workers": 2}
        done, folder = command_line(tmp_path / "run", "ray", **changes)
        assert done.returncode == 0, done.stderr
        expected = model_bytes(start(run_inline, tmp_path / "inline"))
        assert model_bytes(folder) == expected
        log = folder.path / "logs" / "run.log"
        assert "asks for no token" not in log.read_text()
        with monkeypatch.context() as other:
            other.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
            done, _ = command_line(tmp_path / "other", "ray", **changes)
        assert done.returncode == 1, done.stderr
        assert "cannot join the Ray cluster" in " ".join(done.stderr.split())
        assert [node.poll() for node in nodes] == [None, None]
    finally:
        left = [p for p in processes() if p.pid not in before]
        for node in reversed(nodes):
            os.killpg(node.pid, signal.SIGTERM)
            node.wait(30)
        psutil.wait_procs(left, timeout=10)
    done, _ = command_line(tmp_path / "gone", "ray", **changes)
    assert done.returncode != 0
    assert "no Ray cluster at 127.0.0.1" in " ".join(done.stderr.split())


def _join(address, count, folder, arguments):
    """Start a node until the cluster has `count`: Ray ends it after 30 slow seconds."""
    log = folder / f"node-{count}.log"
    for _ in range(5):
        node = _start_node(log, arguments)
        deadline = time.monotonic() + 120
        while node.poll() is None and time.monotonic() < deadline:
            if _has_nodes(address, count):
                return node
            time.sleep(0.5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGTERM)
    raise AssertionError(f"node {count} did not join: {log.read_text()}")


def _start_node(log, arguments):
    with log.open("w") as output:
        return subprocess.Popen(
            [
                *(Path(sys.executable).parent / "ray", "start", "--block"),
                *("--num-cpus=1", *arguments),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        )


def _has_nodes(address, count):
    status = subprocess.run(
        [Path(sys.executable).parent / "ray", "status", f"--address={address}"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return f"/{count}.0 CPU" in status


def _await_worker():
    """A worker, found by its title, which Ray writes anew around every call."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        for process in processes():
            with contextlib.suppress(psutil.Error):
                if "ray::ClientWorker" in " ".join(process.cmdline()):
                    return process
        time.sleep(0.05)
    raise AssertionError([process.name() for process in processes()])
