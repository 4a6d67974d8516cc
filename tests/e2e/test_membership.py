"""Attacks on membership, on real recorded runs with images held out."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from instahide_fl.cli import app
from instahide_fl.engine.inline import run_inline
from instahide_fl.errors import AttackError
from tests.e2e.support import start

pytestmark = pytest.mark.slow

OVERFITTED = {
    "data.train-rows": "0:400",
    "record.rounds": "20,30",
    "record.truth": True,
    "record.holdout-share": 0.5,
    "train.rounds": 30,
    "train.batch-size": 50,
    "train.evaluate-every": 30,
    "partition.num-clients": 5,
    "model.name": "mlp",
    "model.width": 32,
    "server.learning-rate": 0.3,
}


def attack(folder, *arguments):
    done = CliRunner().invoke(app, ["attack", str(folder.path), *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    path = tmp_path_factory.mktemp("overfitted") / "run"
    return start(run_inline, path, **OVERFITTED, **{"instahide.method": "none"})


@pytest.mark.parametrize("adversary", ["honest-server", "participant"])
def test_an_overfitted_run_tells_who_was_trained_on(overfitted, adversary):
    arguments = ("--attack", "membership_updates", "--threat-model", adversary)
    done = attack(overfitted, *arguments)
    assert done.exit_code == 0, done.output
    usual = adversary == "honest-server"
    name = "membership_updates" + ("" if usual else f"-as-{adversary}")
    result = json.loads((overfitted.path / "attacks" / f"{name}.json").read_text())
    membership = result["metrics"]["membership"]
    assert membership["members"] > 150
    assert membership["non_members"] > 150
    assert membership["decided_by"] == "loss"
    assert ("update_loss" in membership["by_client"]) == usual
    assert membership["auc"] > 0.55
    assert result["verdict"] == "leaks"
    assert [row["round"] for row in membership["by_round"]] == [20, 30]
    assert membership["test_accuracy"] > 0.5
    assert "test accuracy" in done.output
    assert (overfitted.path / "attacks" / f"{name}.png").is_file()


def test_without_held_out_images_the_attack_says_what_to_set(tmp_path):
    changes = {**OVERFITTED, "record.holdout-share": 0.0, "train.rounds": 30}
    folder = start(run_inline, tmp_path / "run", **changes)
    with pytest.raises(AttackError, match=r"record\.holdout-share=0\.1"):
        attack(folder, "--attack", "membership_updates")
