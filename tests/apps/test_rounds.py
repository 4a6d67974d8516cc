"""Server and clients together, in one process, on real data."""

from __future__ import annotations

import itertools
import json
from functools import partial

import pytest
import safetensors.torch
import torch
from flwr.app import Message

from instahide_fl.data.pool import MixingPool
from instahide_fl.engine.logs import logging_to
from instahide_fl.errors import ConfigError, OutputError, ProtocolError, RoundError
from instahide_fl.evaluation.finished_run import open_finished_run
from instahide_fl.evaluation.run_evaluation import evaluate_clean
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.in_process_grid import InProcessGrid, server_context
from instahide_fl.run_folder import RunFolder
from tests.apps.inline_runs import settings_over, start

SMALL = {
    "train.rounds": 4,
    "train.batch-size": 8,
    "partition.num-clients": 4,
    "model.width": 4,
    "train.checkpoint-every": 2,
}


settings = partial(settings_over, SMALL)


def model_bytes(folder):
    return (folder.path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"instahide__method": "mixup", "instahide__scope": "inside"},
        {"instahide__method": "none", "data__augment": "crop-flip"},
        {
            "data__train_rows": "0:200",
            "instahide__refresh": 3,
            "train__mode": "update",
            "server__optimizer": "adam",
            "train__optimizer": "adamw",
            "train__clip_norm": 1.0,
            "model__sign_invariant": "auto",
        },
        {"partition__scheme": "dirichlet", "train__local_batches": 2},
        {
            "data__train_rows": "0:200",
            "train__mode": "update",
            "train__control_variates": True,
        },
        {"server__aggregation": "krum", "model__normalization": "batch"},
    ],
)
def test_a_run_repeats_byte_for_byte_and_leaves_a_full_folder(tmp_path, changes):
    first = start(tmp_path / "a", settings(**changes))
    second = start(tmp_path / "b", settings(**changes))
    other = start(tmp_path / "c", settings(seed=1, **changes))
    assert model_bytes(first) == model_bytes(second)
    assert model_bytes(first) != model_bytes(other)
    kept = {"controls"} if "train__control_variates" in changes else set()
    assert {path.name for path in first.path.iterdir()} - kept == {
        *("config.toml", "provenance.json", "metrics.jsonl", "summary.json"),
        *("model.safetensors", "checkpoint", "logs"),
        *("data-report.json", "partition.json", "partition.png", "exposures"),
    }
    rows = first.metrics()
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert (
        rows[-1]["test_accuracy"] == first.read_json("summary.json")["final_accuracy"]
    )
    parameters = safetensors.torch.load(model_bytes(first))
    size = sum(value.nbytes for value in parameters.values())
    size *= 2 if changes.get("train__control_variates") else 1
    assert rows[0]["bytes_up"] == rows[0]["bytes_down"] == 4 * size
    partition = json.loads((first.path / "partition.json").read_text())
    images = 200 if "data__train_rows" in changes else 4000
    assert sorted(itertools.chain(*partition["clients"])) == list(range(images))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu_ends_with_a_finite_model(tmp_path):
    on_gpu = {"resources__gpus_per_client": 1.0, "train__precision": "bfloat16"}
    folder = start(tmp_path / "run", settings(**on_gpu))
    assert folder.read_json("provenance.json")["device"] == "cuda"
    assert folder.finished


def test_a_resumed_run_ends_as_if_never_interrupted(tmp_path, monkeypatch):
    config = settings(
        server__ema=0.7,
        server__optimizer="adamw",
        train__clip_norm=1.0,
        model__sign_invariant="auto",
    )
    whole = start(tmp_path / "whole", config)
    summary = whole.read_json("summary.json")
    assert summary["evaluated"] == "ema"
    assert whole.read_json("provenance.json")["sign_invariant"] is True
    again = evaluate_clean(open_finished_run(whole.path))
    assert (again.accuracy, again.loss) == (
        summary["final_accuracy"],
        summary["final_loss"],
    )
    with importable_app() as (_, server):
        strategy = server.Strategy
        original = strategy.run_round

        def interrupted(self, grid, number):
            if number == 4:
                raise KeyboardInterrupt
            return original(self, grid, number)

        monkeypatch.setattr(strategy, "run_round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "part", config)
        monkeypatch.undo()
    folder = RunFolder.open_interrupted(tmp_path / "part")
    assert [row["round"] for row in folder.metrics()] == [1, 2, 3]
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "half a li')
    with pytest.raises(OutputError, match=r"round 2, train\.rounds is 1"):
        start(tmp_path / "part", config.with_values({"train.rounds": 1}), resume=True)
    changed = config.with_values({"data.train-rows": "0:300"})
    with pytest.raises(OutputError, match=r"the pictures of .* have changed since the"):
        start(tmp_path / "part", changed, resume=True)
    signed = config.with_values({"model.sign-invariant": False})
    with pytest.raises(ConfigError, match=r"was started with .* = true, .* false"):
        start(tmp_path / "part", signed, resume=True)
    text = (folder.path / "config.toml").read_text()
    edited = text.replace("sign-invariant = true", "sign-invariant = false")
    (folder.path / "config.toml").write_text(edited)
    with pytest.raises(ConfigError, match=r"was started with .* = true, .* false"):
        RunFolder.open_interrupted(folder.path)
    (folder.path / "config.toml").write_text(text)
    start(tmp_path / "part", config, resume=True)
    assert model_bytes(folder) == model_bytes(whole)
    assert [row["round"] for row in folder.metrics()] == [1, 2, 3, 4]
    with pytest.raises(OutputError, match="is finished"):
        RunFolder.open_interrupted(tmp_path / "part")


class TamperedGrid(InProcessGrid):
    """Changes or fails the replies of some nodes, as a broken client would."""

    tamper = staticmethod(lambda node, reply: reply)

    def _run(self, message):
        reply = super()._run(message)
        return self.tamper(message.metadata.dst_node_id - 1000, reply, message)


def run_tampered(tmp_path, config, tamper, nodes=None, grid=TamperedGrid):
    config = config.with_values({"output.folder": str(tmp_path / "run")})
    run_config = config.to_run_config()
    count = config.partition.num_clients
    nodes = nodes or [
        {"partition-id": i, "num-partitions": count} for i in range(count)
    ]
    with importable_app() as (clients, server), logging_to(tmp_path / "log"):
        broken = grid(clients.app, nodes, run_config)
        broken.tamper = tamper
        server.app(broken, server_context(run_config))
    return RunFolder(tmp_path / "run")


def failing(reason):
    def tamper(node, reply, message):
        if node == 2 and message.metadata.message_type == "train":
            return Message(_client_error(reason), reply_to=message)
        return reply

    return tamper


def _client_error(reason):
    from flwr.app import Error

    return Error(
        2, f"<class 'x'>:<'\nException ClientAppException occurred. {reason}'>"
    )


def test_too_few_updates_end_the_run_with_the_first_clients_reason(tmp_path):
    expected = r"round 1: 3 of 4 clients .* client 2: disk on fire"
    with pytest.raises(RoundError, match=expected):
        run_tampered(tmp_path, settings(), failing("Message: disk on fire"))
    folder = RunFolder(tmp_path / "run")
    assert not folder.finished
    assert "disk on fire" in str(folder.failure())


def test_a_round_goes_on_without_a_failed_client_where_settings_allow(tmp_path):
    config = settings(train__min_updates=3)
    folder = run_tampered(tmp_path, config, failing("Message: busy"))
    assert [(row["clients"], row["failures"]) for row in folder.metrics()] == [
        (3, 1)
    ] * 4


def test_an_update_that_is_not_finite_is_refused(tmp_path):
    def poison(node, reply, message):
        if node == 1 and message.metadata.message_type == "train":
            from flwr.app import Array, ArrayRecord

            record = reply.content.array_records["arrays"]
            poisoned = {name: a.numpy() * float("nan") for name, a in record.items()}
            reply.content["arrays"] = ArrayRecord(
                {name: Array(value) for name, value in poisoned.items()}
            )
        return reply

    with pytest.raises(RoundError, match=r"client 1: .* not finite"):
        run_tampered(tmp_path, settings(), poison)


def test_an_update_of_the_wrong_kind_or_without_its_records_is_refused(tmp_path):
    def tampered(change):
        def tamper(node, reply, message):
            if node == 1 and message.metadata.message_type == "train":
                change(reply.content)
            return reply

        return tamper

    def relabel(content):
        content["about"]["kind"] = "delta"

    with pytest.raises(
        RoundError, match=r"client 1: .* a delta, this run needs a grad"
    ):
        run_tampered(tmp_path / "a", settings(), tampered(relabel))
    with pytest.raises(RoundError, match="lacks the record 'metrics'"):
        run_tampered(tmp_path / "b", settings(), tampered(lambda c: c.pop("metrics")))


def test_other_code_on_a_client_is_refused(tmp_path):
    def stale(node, reply, message):
        if message.metadata.message_type == "query" and node == 3:
            reply.content["about"]["code-hash"] = "0" * 64
        return reply

    with pytest.raises(ProtocolError, match="client 3 runs other code"):
        run_tampered(tmp_path, settings(), stale)


def test_another_number_of_nodes_is_explained_and_zero_takes_what_is_there(tmp_path):
    nodes = [{"partition-id": i, "num-partitions": 2} for i in range(2)]
    config = settings(train__timeout=5.0)
    with pytest.raises(RoundError, match="2 of 4 clients"):
        run_tampered(tmp_path / "a", config, lambda n, r, m: r, nodes)
    config = settings(partition__num_clients=0)
    folder = run_tampered(tmp_path / "b", config, lambda n, r, m: r, nodes)
    assert folder.config().partition.num_clients == 2
    assert folder.metrics()[0]["clients"] == 2


def test_cohorts_follow_the_seed_not_flowers_node_ids(tmp_path):
    seen = []

    def spy(node, reply, message):
        if message.metadata.message_type == "train":
            seen.append(node)
        return reply

    config = settings(train__clients_per_round=2, train__rounds=6)
    first = run_tampered(tmp_path / "a", config, spy)
    order = [3, 1, 0, 2]
    nodes = [{"partition-id": i, "num-partitions": 4} for i in order]
    renamed = lambda node, reply, message: spy(order[node], reply, message)  # noqa: E731
    second = run_tampered(tmp_path / "b", config, renamed, nodes)
    assert seen[:12] == seen[12:]
    assert len(set(seen)) > 2
    assert model_bytes(first) == model_bytes(second)


def test_real_clients_keys_do_not_repeat_with_the_seed(tmp_path):
    nodes = [{"client-name": f"hospital-{i}"} for i in "ab"]
    for refresh in ("epoch", 2):
        config = settings(partition__num_clients=2, instahide__refresh=refresh)
        runs = [
            run_tampered(tmp_path / f"{refresh}{i}", config, lambda n, r, m: r, nodes)
            for i in range(2)
        ]
        assert model_bytes(runs[0]) != model_bytes(runs[1])
        assert set(runs[0].read_json("provenance.json")["clients"]) == {
            "hospital-a",
            "hospital-b",
        }
        assert not (runs[0].path / "partition.json").exists()


def test_a_client_refuses_another_pool(tmp_path):
    images = torch.zeros(9, 1, 28, 28, dtype=torch.uint8)
    images[0] = 255
    MixingPool.from_images(images).save(tmp_path / "pool")
    nodes = [
        {"client-name": "a"},
        {"client-name": "b", "pool": str(tmp_path / "pool")},
    ]
    with pytest.raises(ProtocolError, match="a and b hold different pools"):
        run_tampered(
            tmp_path, settings(partition__num_clients=2), lambda n, r, m: r, nodes
        )


def test_nothing_of_a_key_or_an_image_is_on_the_wire(tmp_path):
    """Every record of every reply, by name, type and shape."""
    replies = []

    def spy(node, reply, message):
        replies.append((message.metadata.message_type, reply))
        return reply

    folder = run_tampered(tmp_path, settings(train__rounds=1), spy)
    model = safetensors.torch.load(model_bytes(folder))
    for kind, reply in replies:
        content = reply.content
        if kind == "query":
            assert set(content) == {"about"}
            assert set(content["about"]) == {
                *("schema", "client", "num-examples", "code-hash", "pool-sha256")
            }
            continue
        assert set(content) == {"arrays", "about", "metrics"}
        assert set(content["about"]) == {"schema", "client", "kind", "round"}
        assert set(content["metrics"]) == {
            *("num-examples", "train_loss", "seconds"),
            *("exposures_max", "exposures_mean"),
        }
        shapes = {name: a.numpy().shape for name, a in content["arrays"].items()}
        assert shapes == {name: tuple(value.shape) for name, value in model.items()}
