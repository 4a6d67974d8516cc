"""Updates that a broken or hostile client sends: refused, counted, and without effect.

One client of four sends another bad update in every round of one run; the run goes on
with the others, as `train.min-updates` allows, and ends at the bits of a run in which
that client never answered.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord

from instahide_fl.aggregation.server_optimizer import ServerOptimizer
from instahide_fl.config import Config
from instahide_fl.errors import ProtocolError, RoundError
from instahide_fl.flower.arrays import to_record
from instahide_fl.tensor_files import load_tensors
from tests.apps.inline_runs import start
from tests.apps.test_rounds import model_bytes, run_tampered, settings

BAD = 1  # the client


def arrays_of(content):
    return {name: array.numpy() for name, array in content["arrays"].items()}


def rewritten(change):
    """Change all arrays of an update."""

    def tamper(content):
        content["arrays"] = ArrayRecord(
            {
                name: Array(np.asarray(change(a)))
                for name, a in arrays_of(content).items()
            }
        )

    return tamper


def first_array(change):
    """Replace the first array's message by another."""

    def tamper(content):
        known = {name: Array(array) for name, array in arrays_of(content).items()}
        name = min(known)
        known[name] = change(known[name])
        content["arrays"] = ArrayRecord(known)

    return tamper


def with_data(change):
    return first_array(lambda a: Array(a.dtype, a.shape, a.stype, change(a.data)))


def one_value(value):
    def change(array):
        values = np.array(array)
        values.flat[0] = value
        return values

    return rewritten(change)


def told(**values):
    return lambda content: content["metrics"].update(
        {name.replace("__", "-"): value for name, value in values.items()}
    )


def said(**values):
    return lambda content: content["about"].update(values)


def without_array(content):
    content["arrays"].pop(min(content["arrays"]))


def extra_array(content):
    content["arrays"]["backdoor"] = Array(np.zeros(3, np.float32))


def huge_header(data):
    """A few bytes that claim to be terabytes."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
    header = header.ljust(117) + b"\n"
    return (
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data[128:]
    )


FAULTS = {
    "NaN": (one_value(math.nan), "not finite"),
    "infinity": (one_value(math.inf), "not finite"),
    "minus infinity": (one_value(-math.inf), "not finite"),
    "overflowing": (one_value(3e38), "beyond 1e\\+15"),
    "wrong shapes": (rewritten(lambda a: a.flatten()[:1]), "its array .* the model's"),
    "one axis more": (rewritten(lambda a: a[None]), "its array .* the model's"),
    "float64": (rewritten(np.float64), "float64"),
    "integers": (rewritten(np.int32), "int32"),
    "complex": (rewritten(np.complex64), "complex64"),
    "missing array": (without_array, "lacks the array"),
    "extra array": (extra_array, "'backdoor', which the model lacks"),
    "no arrays": (lambda c: c.update(arrays=ArrayRecord()), "lacks the array"),
    "huge payload": (with_data(lambda data: data + bytes(50_000_000)), "comes in 5000"),
    "short payload": (with_data(lambda data: data[:-4]), "not what it says"),
    "not numpy's": (with_data(lambda data: b"x" * len(data)), "not what it says"),
    "header of terabytes": (with_data(huge_header), "not what it says"),
    "another type": (
        first_array(lambda a: Array(a.dtype, a.shape, "pickle", a.data)),
        "not what it says",
    ),
    "another schema": (said(schema=2), "schema 2 came"),
    "no schema": (lambda c: c["about"].pop("schema"), "schema None"),
    "forged identity": (said(client="3"), "calls itself client '3'"),
    "another kind": (said(kind="delta"), "a delta, this run needs a gradient"),
    "replayed": (said(round=1), "computed for round 1, this is round"),
    "from the future": (said(round=10**6), "computed for round 1000000"),
    "round of text": (said(round="1"), "round must be a whole number"),
    "no round": (lambda c: c["about"].pop("round"), "lacks round"),
    "about missing": (lambda c: c.pop("about"), "lacks the record 'about'"),
    "metrics missing": (lambda c: c.pop("metrics"), "lacks the record 'metrics'"),
    "arrays missing": (lambda c: c.pop("arrays"), "lacks the record 'arrays'"),
    "about of arrays": (
        lambda c: c.update(about=to_record({"client": torch.zeros(1)})),
        "lacks the record 'about'",
    ),
    "metrics of text": (
        lambda c: c.update(metrics=ConfigRecord({"num-examples": "8"})),
        "lacks the record 'metrics'",
    ),
    "another record": (
        lambda c: c.update(key=MetricRecord({"secret": 1})),
        "record 'key' too many",
    ),
    "no image": (told(num__examples=0), "num-examples must be from 1 to"),
    "negative images": (told(num__examples=-8), "num-examples must be from 1 to"),
    "2^62 images": (told(num__examples=2**62), "num-examples must be from 1 to"),
    "half an image": (told(num__examples=0.5), "num-examples must be from 1 to"),
    "a list of images": (told(num__examples=[8]), "num-examples must be from 1 to"),
    "loss NaN": (told(train_loss=math.nan), "train_loss must be a finite"),
    "loss infinite": (told(train_loss=math.inf), "train_loss must be a finite"),
    "loss missing": (
        lambda c: c["metrics"].pop("train_loss"),
        "does not say its train",
    ),
    "loss of many": (told(train_loss=[1.0, 2.0]), "train_loss must be a finite"),
    "negative seconds": (told(seconds=-1e9), "seconds is below zero"),
    "seconds infinite": (told(seconds=math.inf), "seconds must be a finite"),
    "exposures NaN": (told(exposures_max=math.nan), "exposures_max must be a finite"),
    "exposures by half": (
        lambda c: c["metrics"].pop("exposures_mean"),
        "counts exposures by half",
    ),
}


def faulty(number_of, node, reply, message):
    about = message.metadata
    if node == BAD and about.message_type == "train":
        number_of[int(about.group_id)](reply.content)
    return reply


def test_a_bad_update_is_refused_counted_and_without_effect(tmp_path):
    config = settings(train__rounds=len(FAULTS) + 1, train__min_updates=3)
    faults = {1: lambda content: None}  # so that there is one to replay
    faults |= {i: change for i, (change, _) in enumerate(FAULTS.values(), start=2)}
    (tmp_path / "a").mkdir()
    hostile = run_tampered(tmp_path / "a", config, lambda *of: faulty(faults, *of))
    rows = hostile.metrics()
    assert rows[0]["failure_reasons"] == {}
    for row, (name, (_, reason)) in zip(rows[1:], FAULTS.items(), strict=True):
        assert (row["clients"], row["failures"]) == (3, 1), name
        assert set(row["failure_reasons"]) == {"1"}, name
        found = row["failure_reasons"]["1"]
        assert re.search(f"its update is refused: .*{reason}", found), (name, found)
        assert math.isfinite(row["train_loss"]), name

    def silent(node, reply, message):
        about = message.metadata
        if node == BAD and about.message_type == "train" and about.group_id != "1":
            return Message(Error(2, "asleep"), reply_to=message)
        return reply

    (tmp_path / "b").mkdir()
    quiet = run_tampered(tmp_path / "b", config, silent)
    assert model_bytes(hostile) == model_bytes(quiet)
    log = (tmp_path / "a" / "log").read_text()
    assert log.count("client 1 failed: its update is refused") == len(FAULTS)


def scaled_by(factor):
    def tamper(node, reply, message):
        if node == BAD and message.metadata.message_type == "train":
            rewritten(lambda array: array * np.float32(factor))(reply.content)
        return reply

    return tamper


def test_a_large_update_of_a_real_client_is_warned_of_and_refused_beyond_a_bound(
    tmp_path,
):
    nodes = [{"client-name": f"hospital-{i}"} for i in range(4)]
    config = settings(train__rounds=1, train__min_updates=3)
    (tmp_path / "a").mkdir()
    run_tampered(tmp_path / "a", config, scaled_by(1e6), nodes)
    log = (tmp_path / "a" / "log").read_text()
    warned = re.search(r"the update of client (\S+) has (\S+) times the median", log)
    assert warned[1] == f"hospital-{BAD}"
    assert 1e5 < float(warned[2]) < 1e7
    bounded = config.with_values({"server.max-update-norm": 100.0})
    (tmp_path / "b").mkdir()
    folder = run_tampered(tmp_path / "b", bounded, scaled_by(1e6), nodes)
    reasons = folder.metrics()[0]["failure_reasons"]
    assert set(reasons) == {f"hospital-{BAD}"}
    assert re.search(r"beyond server\.max-update-norm = 100", *reasons.values())
    assert "times the median" not in (tmp_path / "b" / "log").read_text()


def test_a_bound_that_all_updates_keep_changes_no_bit(tmp_path):
    free = start(tmp_path / "free", settings())
    bounded = start(tmp_path / "bounded", settings(server__max_update_norm=1e6))
    assert model_bytes(free) == model_bytes(bounded)


def test_what_a_client_says_of_its_failure_moves_no_cursor(tmp_path):
    def tamper(node, reply, message):
        if node == BAD and message.metadata.message_type == "train":
            reason = "\x1b[2J\x1b]0;gone\x07 all \u202ewell"
            return Message(Error(2, reason), reply_to=message)
        return reply

    config = settings(train__rounds=1, train__min_updates=3)
    folder = run_tampered(tmp_path, config, tamper)
    reason = folder.metrics()[0]["failure_reasons"][str(BAD)]
    assert reason == r"\x1b[2J\x1b]0;gone\x07 all \u202ewell"
    assert "\x1b" not in (tmp_path / "log").read_text()


def test_unknown_figures_of_a_client_are_not_kept(tmp_path):
    def tamper(node, reply, message):
        if message.metadata.message_type == "train":
            reply.content["metrics"]["note"] = math.nan
        return reply

    config = settings(train__rounds=1, record__rounds="1")
    folder = run_tampered(tmp_path, config, tamper)
    from instahide_fl.transcript.recorded import read_transcript

    for update in read_transcript(folder.path, 1).updates.values():
        assert "note" not in update.metrics


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"num-examples": -1}, "num-examples must be a whole number from 1"),
        ({"num-examples": 2**62}, "num-examples must be a whole number from 1"),
        ({"num-examples": "many"}, "num-examples must be a whole number from 1"),
        ({"client": "../../etc/passwd"}, "no slash"),
        ({"client": "x" * 1000}, "1 to 100 printable characters"),
        ({"client": "a\nb"}, "printable"),
        ({"client": 3}, "client must be a text"),
        ({"code-hash": 5}, "code-hash must be a text"),
        ({"schema": 1}, "schema 1 came"),
    ],
)
def test_a_client_that_cannot_say_who_it_is_ends_the_run_clearly(
    tmp_path, values, reason
):
    def tamper(node, reply, message):
        if node == BAD and message.metadata.message_type == "query":
            reply.content["about"].update(values)
        return reply

    with pytest.raises(ProtocolError, match=reason):
        run_tampered(tmp_path, settings(), tamper)


SECURE_FAULTS = {
    "no keys": ("query.public_keys", said(**{"mask-keys": b"x"}), "no public key"),
    "keys missing": (
        "query.public_keys",
        lambda c: c["about"].pop("mask-keys"),
        "lacks mask-keys",
    ),
    "too few shares": (
        "query.key_shares",
        said(ciphertexts=[b"x"]),
        "must hold 3 secrets",
    ),
    "short vector": (
        "train",
        lambda c: c.update(arrays=to_record({"vector": torch.zeros(3).int()})),
        "its array vector is",
    ),
    "forged": ("train", said(client="2"), "calls itself client '2'"),
    "replayed": ("train", said(round=1), "computed for round 1"),
}


def test_bad_messages_of_secure_aggregation_drop_their_client(tmp_path):
    config = settings(
        train__rounds=len(SECURE_FAULTS) + 1,
        train__min_updates=3,
        secure_aggregation__enabled=True,
    )
    planned = dict(enumerate(SECURE_FAULTS.values(), start=2))

    def tamper(node, reply, message):
        about = message.metadata
        number = int(about.group_id or 1)
        if node == BAD and number in planned:
            kind, change, _ = planned[number]
            if about.message_type == kind:
                change(reply.content)
        return reply

    rows = run_tampered(tmp_path, config, tamper).metrics()
    assert rows[0]["failures"] == 0
    for row, (_, _, reason) in zip(rows[1:], SECURE_FAULTS.values(), strict=True):
        assert set(row["failure_reasons"]) == {"1"}
        assert reason in row["failure_reasons"]["1"]


def test_a_step_that_overflows_ends_the_run_and_leaves_no_poisoned_model(tmp_path):
    config = settings(server__learning_rate=1e38, train__checkpoint_every=1)
    with pytest.raises(RoundError, match="not finite"):
        run_tampered(tmp_path, config, lambda node, reply, message: reply)
    kept = tmp_path / "run" / "checkpoint" / "state.safetensors"
    if kept.exists():
        assert all(one.isfinite().all() for one in load_tensors(kept)[0].values())
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "yogi", "adagrad"])
def test_the_largest_values_let_through_do_not_overflow_any_optimizer(optimizer):
    config = Config().with_values({"server.optimizer": optimizer})
    server = ServerOptimizer({"w": torch.zeros(4)}, config)
    largest = torch.tensor([1e15, -1e15, 0.0, 1.0])
    for _ in range(100):
        server.step({"w": largest}, "gradient")
        assert server.is_finite()


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        (
            "<class 'instahide_fl.errors.DataError'>:<'no such folder'>",
            "no such folder",
        ),
        ("<class 'x'>:<'\nException ClientAppException occurred. Message: a'>", "a"),
        ("SuperNode is unavailable", "SuperNode is unavailable"),
        ("", "error code 2"),
        (" \n ", "no reason"),
    ],
)
def test_a_clients_reason_is_shown_without_wrapping(reason, shown):
    from flwr.app import RecordDict

    from instahide_fl.flower.app_bundle import importable_app
    from instahide_fl.flower.in_process_grid import become_server

    with importable_app():
        from server.records import failure_reason
    become_server()
    asked = Message(RecordDict(), 7, "train")
    assert failure_reason(Message(Error(2, reason), reply_to=asked)) == shown
