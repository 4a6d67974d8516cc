"""Secure aggregation by the real apps: the sum is right, and nothing else is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Error, Message

from instahide_fl.errors import ConfigError, RoundError
from instahide_fl.flower.arrays import from_record
from instahide_fl.tensor_files import load_tensors
from instahide_fl.transcript.recorded import read_transcript
from tests.apps.test_rounds import (
    TamperedGrid,
    model_bytes,
    run_tampered,
    settings,
    start,
)

SECURE = {"secure_aggregation__enabled": True, "train__rounds": 2}

# Without kinks: a ReLU or a maximum that turns over makes of the sum's rounding, 3e-8,
# a thousand times as much in two rounds, on some processors and not on others.
SMOOTH = {"model__name": "strided-cnn", "model__activation": "sigmoid"}


def failing_at(client, stage):
    """Let one client fail when a message of this type comes."""

    def tamper(node, reply, message):
        kind = message.metadata.message_type
        if node == client and kind == stage:
            return Message(Error(0, "gone"), reply_to=message)
        return reply

    return tamper


def model(folder):
    return load_tensors(folder.path / "model.safetensors")[0]


def closest(left, right):
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__mode": "update", "model__normalization": "batch"},
        {"server__aggregation": "mean", "partition__scheme": "dirichlet"},
        {"train__mode": "update", "train__control_variates": True},
    ],
)
def test_the_model_is_that_of_a_run_in_the_open(tmp_path, changes):
    changes = {"data__train_rows": "0:400", "train__rounds": 2, **SMOOTH, **changes}
    secure = start(tmp_path / "a", settings(**{**changes, **SECURE}))
    again = start(tmp_path / "b", settings(**{**changes, **SECURE}))
    plain = start(tmp_path / "c", settings(**changes))
    # Keys are fresh in every run; they cancel to the last bit.
    assert model_bytes(secure) == model_bytes(again)
    assert closest(model(secure), model(plain)) < 2e-6
    for hidden, known in zip(secure.metrics(), plain.metrics(), strict=True):
        assert hidden["train_loss"] == pytest.approx(known["train_loss"], abs=1e-5)


@pytest.mark.parametrize("stage", ["query.public_keys", "query.key_shares", "train"])
def test_the_sum_is_right_when_a_client_drops_out(tmp_path, stage):
    config = settings(**SECURE, train__min_updates=3)
    secure = run_tampered(tmp_path / "a", config, failing_at(2, stage))
    (tmp_path / "b").mkdir()
    open_config = settings(train__rounds=2, train__min_updates=3)
    plain = run_tampered(tmp_path / "b", open_config, failing_at(2, "train"))
    assert closest(model(secure), model(plain)) < 1e-6
    assert [row["failures"] for row in secure.metrics()] == [1, 1]


def test_fewer_than_the_threshold_is_an_error_that_names_a_client(tmp_path):
    def tamper(node, reply, message):
        if node in (1, 2) and message.metadata.message_type == "query.unmask":
            return Message(Error(0, "gone"), reply_to=message)
        return reply

    with pytest.raises(RoundError, match=r"2 clients are left.* 3 \(1: gone; 2: gone"):
        run_tampered(tmp_path, settings(**SECURE, train__min_updates=2), tamper)


def test_a_single_payload_is_noise_and_the_transcript_holds_the_sum_alone(tmp_path):
    sent = []

    def tamper(node, reply, message):
        if message.metadata.message_type == "train":
            sent.append(from_record(reply.content.array_records["arrays"])["vector"])
        return reply

    changes = {"train__rounds": 1, "record__rounds": "1"}
    secure = run_tampered(tmp_path, settings(**{**SECURE, **changes}), tamper)
    plain = start(tmp_path / "plain", settings(**changes))
    seen = read_transcript(plain.path, 1)
    hidden = read_transcript(secure.path, 1)
    assert hidden.updates == {}
    assert closest(hidden.aggregate, seen.aggregate) < 1e-6
    for vector, update in zip(sent, seen.updates.values(), strict=True):
        own = torch.cat([a.flatten() for _, a in sorted(update.arrays.items())])
        related = np.corrcoef(vector.numpy()[:-2].astype(float), own.numpy())[0, 1]
        assert abs(related) < 0.05


def test_a_server_that_asks_for_both_secrets_of_a_client_is_refused(tmp_path):
    """A server that calls a client both there and gone could read its update."""
    config = settings(**SECURE, train__min_updates=1)

    class Greedy(TamperedGrid):
        def push_messages(self, messages):
            messages = list(messages)
            for message in messages:
                if message.metadata.message_type == "query.unmask":
                    about = message.content.config_records["about"]
                    about["dropped"] = [about["survivors"][0]]
            return super().push_messages(messages)

    with pytest.raises(RoundError, match="refuses to unmask"):
        run_tampered(tmp_path, config, lambda node, reply, message: reply, grid=Greedy)


def test_what_cannot_be_aggregated_securely_is_refused_at_once():
    with pytest.raises(ConfigError, match="hides single updates, which server"):
        settings(**SECURE, server__aggregation="krum", partition__num_clients=6)
    with pytest.raises(ConfigError, match=r"max-update-norm = 3 bounds"):
        settings(server__max_update_norm=3.0, **SECURE)
    with pytest.raises(ConfigError, match="at least 3 clients in a round, got 2"):
        settings(**SECURE, partition__num_clients=2)
