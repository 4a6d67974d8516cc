"""Real Flower and real Ray: the bytes of inline, and an end that can be trusted."""

from __future__ import annotations

import subprocess
import sys

import pytest

from instahide_fl.child_processes import end_marked, marked_environment
from instahide_fl.engine.flower import run_flower
from instahide_fl.engine.inline import run_inline
from instahide_fl.errors import RoundError
from instahide_fl.run_folder import RunFolder
from tests.e2e.support import marked_processes, model_bytes, start

pytestmark = pytest.mark.slow


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {
            "resources.workers": 2,
            "data.train-rows": "0:300",
            "train.mode": "update",
            "train.control-variates": True,  # clients keep state
            "train.schedule": "cosine",
            "model.normalization": "batch",  # and send statistics
            "secure-aggregation.enabled": True,  # in four stages
        },
        {
            "resources.workers": 1,
            "defense.differential-privacy": "dp-sgd",
            "defense.transforms": "prune",
            "instahide.method": "none",
            "server.optimizer": "adamw",
            "server.ema": 0.5,
            "train.clip-norm": 0.5,
        },
    ],
)
def test_flower_on_ray_gives_the_bytes_of_inline(tmp_path, changes):
    inline = start(run_inline, tmp_path / "inline", **changes)
    flower = start(run_flower, tmp_path / "flower", **changes)
    assert model_bytes(inline) == model_bytes(flower)
    keep = (
        *("round", "test_accuracy", "train_loss", "clients", "bytes_up", "exposures"),
        "epsilon",
    )
    rows = [
        [{key: row.get(key) for key in keep} for row in folder.metrics()]
        for folder in (inline, flower)
    ]
    assert rows[0] == rows[1]
    hashes = [f.read_json("provenance.json")["code_hash"] for f in (inline, flower)]
    assert hashes[0] == hashes[1]
    assert not marked_processes()


@pytest.mark.long
def test_a_failed_run_fails_with_the_clients_reason(tmp_path):
    # The command line would have found this before; here the clients raise it.
    changes = {"pool.source": str(tmp_path / "nowhere")}
    expected = (
        r"^a client is not ready: pool\.source: no pool at .*nowhere .*\"photos\"$"
    )
    with pytest.raises(RoundError, match=expected):
        start(run_flower, tmp_path / "run", **changes)
    assert not RunFolder(tmp_path / "run").finished
    assert not marked_processes()


def test_daemons_that_left_the_process_tree_are_ended():
    with marked_environment() as environment:
        script = (
            "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(99)"
        )
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)
        assert len(marked_processes()) == 1
    assert not marked_processes()
    end_marked("a mark that nobody carries")
