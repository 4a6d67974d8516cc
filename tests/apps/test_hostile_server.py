"""A server that changes what it sends: clients with folders of their own refuse."""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys

import pytest
import torch
from flwr.app import Array

from instahide_fl.aggregation.masking import FixedPoint
from instahide_fl.deployment.certificates import new_node_key
from instahide_fl.deployment.ledger import read_ledger
from instahide_fl.errors import RoundError
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.app_files import app_root
from instahide_fl.flower.arrays import from_record, to_record
from instahide_fl.flower.in_process_grid import InProcessGrid, name_message, run_client
from instahide_fl.tensor_files import load_tensors
from tests.apps.hospital import CLIENTS, EACH, deployed, node, settings

SECURE = {"secure_aggregation__enabled": True}
# Of these settings, entries of an update of the first round are well below 0.1.
ONE_ROUND = {"train__rounds": 1, "server__learning_rate": 1.0}


def hostile(tamper):
    """A grid whose messages of training a server has changed on the way.

    Args:
        tamper: Called with the grid, the client's name and the message.
    """

    class HostileGrid(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            for message in messages:
                name = CLIENTS[message.metadata.dst_node_id - 1000]
                tamper(self, name, message)
            return super().push_messages(messages)

        def ask_at_once(self, message):
            """Run a message as a second process would: the node's state is as before.

            Returns the reply.
            """
            context = copy.deepcopy(self._contexts[message.metadata.dst_node_id])
            name_message(message)
            return run_client(self._client_app, message, context)

    return HostileGrid


def is_training(message):
    return message.metadata.message_type == "train"


def refused(tmp_path, hospital, tamper, code, limits=None, **changes):
    """Run one round against three clients; the reason must be a code."""
    nodes = [node(hospital, name, limits) for name in CLIENTS]
    config = settings(hospital, **{"train__rounds": 1, **changes})
    with pytest.raises(RoundError, match=f"refuses, code {code}[ ,]") as failed:
        deployed(tmp_path / "refused", config, nodes, hostile(tamper))
    assert str(hospital) not in str(failed.value)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"mean": [-1.0] * 3, "std": [1e-4] * 3}, "normalisation"),
        ({"std": [1e-4] * 3}, "normalisation"),
        ({"mean": [0.5, 0.5, 30.0]}, "normalisation"),
        ({"mean": [0.5], "std": [0.25]}, "normalisation"),
        ({"learning-rate-factor": 0.0}, "round"),
        ({"round": 2}, "round"),
        ({"pool-sha256": "ab" * 32}, "pool"),
    ],
)
def test_what_comes_with_a_round_is_checked(tmp_path, hospital, values, code):
    def tamper(grid, name, message):
        if is_training(message):
            message.content["about"].update(values)

    refused(tmp_path, hospital, tamper, code)


def test_a_range_of_its_own_replaces_the_factor(tmp_path, hospital):
    own = {"mean-range": [0.0, 0.1], "std-range": [0.1, 0.4]}
    # The server's honest constants, near 0.5, lie outside.
    refused(tmp_path, hospital, lambda *_: None, "normalisation", own)
    wide = {"mean-range": [0.0, 1.0], "std-range": [0.1, 0.4]}
    nodes = [node(hospital, name, wide) for name in CLIENTS]
    deployed(tmp_path / "wide", settings(hospital, **ONE_ROUND), nodes)


def with_value(array, value):
    changed = array.clone()
    changed.view(-1)[0] = value
    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda name, array: {name: with_value(array, float("nan"))},
        lambda name, array: {name: with_value(array, -1001.0)},
        lambda name, array: {name: array.double()},
        lambda name, array: {name: array.flatten()[:1]},
        lambda name, array: {name: array, "another": array},
        lambda name, array: {f"control/{name}": array, name: array},
    ],
)
def test_arrays_are_those_of_the_network(tmp_path, hospital, change):
    def tamper(grid, name, message):
        if is_training(message):
            arrays = from_record(message.content["arrays"])
            first = min(arrays)
            message.content["arrays"] = to_record(arrays | change(first, arrays[first]))

    refused(tmp_path, hospital, tamper, "parameters")


def test_bytes_that_are_not_what_they_say_are_not_decoded(tmp_path, hospital):
    def tamper(grid, name, message):
        if is_training(message):
            record = message.content["arrays"]
            first = min(record)
            plain = record[first]
            data = bytes(1000) + plain.data
            record[first] = Array(plain.dtype, plain.shape, plain.stype, data)

    refused(tmp_path, hospital, tamper, "parameters")


# Secure aggregation -------------------------------------------------------------------


def test_a_largest_weight_that_silences_the_others_is_refused(tmp_path, hospital):
    def tamper(grid, name, message):
        if is_training(message) and name != "west":
            message.content["masks"]["largest-weight"] = 1e12

    refused(tmp_path, hospital, tamper, "weights", **SECURE)


def test_other_parameters_for_the_others_leave_the_sum_masked(
    tmp_path, hospital, monkeypatch
):
    """Zero parameters would make their updates known, and the sum that of west."""
    nodes = [node(hospital, name) for name in CLIENTS]
    config = settings(hospital, **ONE_ROUND, **SECURE)
    sums = []
    with importable_app():
        from server.secure_aggregation import SecureRound

    unmask = SecureRound._total

    def watched(self, *arguments, **options):
        total = unmask(self, *arguments, **options)
        sums.append(FixedPoint(16.0, len(CLIENTS)).decode(total).abs())
        return total

    def tamper(grid, name, message):
        if is_training(message) and name != "west":
            arrays = from_record(message.content["arrays"])
            zeros = {key: torch.zeros_like(array) for key, array in arrays.items()}
            message.content["arrays"] = to_record(zeros)

    monkeypatch.setattr(SecureRound, "_total", watched)
    deployed(tmp_path / "honest", config, nodes)
    with contextlib.suppress(RoundError):  # what comes of it may weigh less than zero
        deployed(tmp_path / "hostile", config, nodes, hostile(tamper))
    honest, isolated = sums
    # Masked numbers are uniform up to 48, three times largest-value.
    assert honest[:-2].median() < 0.1
    assert isolated[:-2].median() > 10


@pytest.mark.parametrize("stage", ["train", "query.key_shares", "query.unmask"])
def test_a_rounds_keys_answer_once_also_side_by_side(tmp_path, hospital, stage):
    answers = []

    def tamper(grid, name, message):
        if message.metadata.message_type == stage and name == "west":
            second = copy.deepcopy(message)
            if stage == "train":
                arrays = from_record(second.content["arrays"])
                zeros = {key: torch.zeros_like(array) for key, array in arrays.items()}
                second.content["arrays"] = to_record(zeros)
            answers.append(grid.ask_at_once(second))

    code = "secure-aggregation"
    refused(tmp_path, hospital, tamper, code, **SECURE, train__min_updates=3)
    assert len(answers) == 1
    assert not answers[0].has_error()


def test_a_cohort_smaller_than_a_client_asks_for_is_refused(tmp_path, hospital):
    limits = {"min-cohort": 4}
    refused(tmp_path, hospital, lambda *_: None, "cohort", limits, **SECURE)


@pytest.fixture
def enrolled(hospital):
    """Give every client a key, and the public keys of the others."""
    for name in CLIENTS:
        pair = new_node_key(name)
        folder = hospital / "clients" / name
        (folder / "node.key").write_bytes(pair.private)
        for other in set(CLIENTS) - {name}:
            pinned = hospital / "clients" / other / "peers" / f"{name}.pub"
            pinned.parent.mkdir(exist_ok=True)
            pinned.write_bytes(pair.public)
    return [node(hospital, name, {"pinned-peers": True}) for name in CLIENTS]


def test_pinned_clients_find_each_other(tmp_path, hospital, enrolled):
    config = settings(hospital, **ONE_ROUND, **SECURE)
    folder = deployed(tmp_path / "run", config, enrolled)
    assert folder.metrics()[0]["clients"] == 3


@pytest.mark.parametrize("what", ["key", "signature of the cohort", "stranger"])
def test_a_client_that_the_server_invented_is_refused(
    tmp_path, hospital, enrolled, what
):
    def tamper(grid, name, message):
        kind, content = message.metadata.message_type, message.content
        if name != "west":
            return
        if kind == "query.key_shares" and what == "key":
            # A key of the server's own in the place of the first client's.
            about = content["about"]
            keys = list(about["exchange-keys"])
            keys[0] = bytes(reversed(keys[0]))
            about["exchange-keys"] = keys
        if is_training(message) and what == "signature of the cohort":
            masks = content["masks"]
            masks["signatures"] = list(reversed(masks["signatures"]))

    if what == "stranger":
        (hospital / "clients/west/peers/east.pub").unlink()
    config = settings(hospital, **ONE_ROUND, **SECURE)
    with pytest.raises(RoundError, match="west: client west refuses, code cohort"):
        deployed(tmp_path / "run", config, enrolled, hostile(tamper))


# What a client gives away over time ---------------------------------------------------


def test_updates_of_a_day_are_counted_over_runs(tmp_path, hospital):
    states = [hospital / "clients" / name / "state" for name in CLIENTS]
    before = [read_ledger(state).updates_of_a_day() for state in states]
    nodes = [node(hospital, name) for name in CLIENTS]
    deployed(tmp_path / "run", settings(hospital, **ONE_ROUND), nodes)
    after = [read_ledger(state).updates_of_a_day() for state in states]
    assert after == [count + 1 for count in before]
    limits = {"max-rounds-a-day": max(after)}
    refused(tmp_path, hospital, lambda *_: None, "rounds-a-day", limits)


def test_epsilon_is_counted_by_the_client_over_runs(tmp_path, hospital):
    private = {
        "defense__differential_privacy": "local",
        "server__aggregation": "mean",
        "defense__noise_multiplier": 4.0,
        # By the run's own delta nothing would be spent.
        "defense__delta": 0.99,
    }
    # One update at noise 4 spends an epsilon of 2.4 at delta 1e-5, two spend 3.6.
    limits = {"max-epsilon": 3.0}
    nodes = [node(hospital, name, limits) for name in CLIENTS]
    config = settings(hospital, **ONE_ROUND, **private)
    deployed(tmp_path / "first", config, nodes)
    refused(tmp_path, hospital, lambda *_: None, "privacy", limits, **private)
    plain = {"code": "limits", "limits": limits}
    refused(tmp_path / "plain", hospital, lambda *_: None, **plain)


def test_an_update_that_never_left_counts(tmp_path, hospital, monkeypatch):
    def dies(*arguments):
        raise SystemExit("the machine went down")

    nodes = [node(hospital, name) for name in CLIENTS]
    ledger = hospital / "clients/east/state/exposures.safetensors"
    ledger.unlink(missing_ok=True)
    with importable_app() as (clients, _):
        monkeypatch.setattr(clients, "reply_update", dies)
        with pytest.raises(RoundError, match="code internal"):
            deployed(tmp_path / "run", settings(hospital, **ONE_ROUND), nodes)
    tensors, _ = load_tensors(ledger)
    assert tensors["1/counts"].sum() == 8  # four encodings of two images


ONE_CLIENT = """
import sys, time
from pathlib import Path
from instahide_fl.config import Config
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.in_process_grid import InProcessGrid, server_context
from tests.apps.hospital import settings

hospital, name, ready = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
config = settings(
    hospital,
    train__batch_size=12,
    train__rounds=1,
    partition__num_clients=1,
    instahide__max_exposures=1,
    instahide__exposure_action="stop",
    output__folder=str(ready) + "-" + sys.argv[4],
)
with importable_app() as (clients, server):
    run_config = config.to_run_config()
    grid = InProcessGrid(
        clients.app, [{"client-folder": str(hospital / "clients" / name)}], run_config
    )
    Path(f"{ready}.{sys.argv[4]}").touch()
    while len(list(ready.parent.glob(ready.name + ".*"))) < 2:
        time.sleep(0.01)
    server.app(grid, server_context(run_config))
"""


@pytest.mark.slow
def test_two_runs_at_once_share_one_count(tmp_path, hospital):
    node(hospital, "north", {"max-exposures": 1})
    state = hospital / "clients/north/state"
    (state / "exposures.safetensors").unlink(missing_ok=True)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_CLIENT, hospital, "north", tmp_path / "r", run],
            cwd=app_root(),
            env={**os.environ, "PYTHONPATH": str(app_root())},
            stderr=subprocess.PIPE,
            text=True,
        )
        for run in ("a", "b")
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    # Twelve encodings of two images each leave none for a second run.
    assert codes == [0, 1], errors
    assert any("code exposures" in error for error in errors), errors
    tensors, _ = load_tensors(state / "exposures.safetensors")
    assert tensors["1/counts"].sum() == 2 * EACH
