"""The contract with Flower's internals: if a new version breaks it, it breaks here."""

from __future__ import annotations

import importlib
import sys

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from ray.exceptions import ActorDiedError, RayTaskError

from instahide_fl.engine.ray.worker_pool import start_failure
from instahide_fl.errors import EngineError
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.in_process_grid import CLIENT_APP_RAISED, InProcessGrid

app = ClientApp()


@app.train()
def echo(message, context):
    if context.node_config["number"] == 1:
        raise ValueError("on purpose")
    message.content["about"]["changed"] = 1
    context.state["calls"] = ConfigRecord({"n": len(context.state) + 1})
    return Message(message.content, reply_to=message)


@pytest.fixture
def grid():
    return InProcessGrid(app, [{"number": 0}, {"number": 1}], {"seed": 3})


def test_messages_reach_their_node_and_errors_come_back_as_flower_words_them(grid):
    content = RecordDict({"about": ConfigRecord({"x": 1})})
    nodes = list(grid.get_node_ids())
    messages = [Message(content, node, "train", group_id="1") for node in nodes]
    ids = list(grid.push_messages(messages))
    replies = list(grid.pull_messages(ids))
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    assert replies[0].content["about"]["changed"] == 1
    assert "changed" not in content["about"], "a client changed the server's record"
    assert CLIENT_APP_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert replies[1].error.code == CLIENT_APP_RAISED
    assert "ClientAppException occurred. Message: on purpose" in replies[1].error.reason
    assert list(grid.pull_messages(ids)) == []


def test_another_package_of_the_name_of_an_app_is_named(tmp_path, monkeypatch):
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "clients"]:
        monkeypatch.delitem(sys.modules, name)
    other = importlib.import_module("clients")
    assert next(iter(other.__path__)) == str(tmp_path / "clients")
    expected = rf"another package is imported as clients \({tmp_path}/clients\)"
    with pytest.raises(EngineError, match=expected), importable_app():
        pass


def test_the_reason_of_a_worker_that_cannot_start_is_its_last_line():
    trace = "Traceback (most recent call last):\n  ...\n"
    for last, expected in (
        ("instahide_fl.errors.EngineError: it is old", "it is old"),
        ("ImportError: no module", "ImportError: no module"),
    ):
        error = RayTaskError("ClientWorker.__init__", trace + last, EngineError())
        died = ActorDiedError.from_task_error(error)
        assert start_failure(died) == expected


def test_state_is_kept_per_node(grid):
    content = RecordDict({"about": ConfigRecord({"x": 1})})
    node = next(iter(grid.get_node_ids()))
    for _ in range(2):
        (reply,) = grid.send_and_receive([Message(content, node, "train")])
        assert reply.has_content()
    assert grid._contexts[node].state["calls"]["n"] == 2
    assert len(grid._contexts[node + 1].state) == 0
