"""What a network that has learned nothing may reach, and what is said of it."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from instahide_fl.config import Config
from instahide_fl.evaluation.chance import ChanceLevel, chance_warning
from instahide_fl.progress import RunProgress
from instahide_fl.run_folder import SUMMARY, RunFolder


def test_the_bound_is_the_upper_end_of_an_exact_interval():
    balanced = ChanceLevel.of(torch.arange(1000) % 10)
    # qbeta(0.995, 101, 900) of R.
    assert balanced.bound == pytest.approx(0.12685, abs=1e-4)
    assert not balanced.is_beaten_by(balanced.bound)
    assert balanced.is_beaten_by(0.128)
    uneven = ChanceLevel.of(torch.tensor([0] * 80 + [1] * 20))
    assert (uneven.majority_share, uneven.is_beaten_by(0.85)) == (0.8, False)


def test_the_warning_names_settings_of_the_side_that_takes_the_steps():
    config = Config().with_values({"model.sign-invariant": False})
    text = chance_warning(0.1, 0.13, config)
    assert "10.0% is not above 13.0%" in text
    assert "server.learning-rate (now 0.1)" in text
    assert 'model.normalization = "group"' in text
    assert "model.sign-invariant = true" in text
    without_layers = config.with_values({"model.name": "lenet"})
    assert "normalization" not in chance_warning(0.1, 0.13, without_layers)
    update = config.with_values(
        {
            "train.mode": "update",
            "model.normalization": "group",
            "model.sign-invariant": "auto",
        }
    )
    text = chance_warning(0.1, 0.13, update)
    assert "train.learning-rate (now 0.05)" in text
    assert "normalization" not in text
    assert "sign-invariant" not in text
    assert "one class" in chance_warning(1.0, 1.0, config)


def test_a_run_at_chance_warns_while_it_goes_on(tmp_path, capsys):
    folder = RunFolder.create(tmp_path / "run", Config())
    row = {"round": 1, "seconds": 1.0, "evaluation_seconds": 0.1, "clients": 1}
    row |= {"test_accuracy": 0.1, "at_chance": True, "chance_bound": 0.13}
    with RunProgress(folder, 2, Console(width=300)):
        folder.append_metrics(row)
    assert capsys.readouterr().out.count("round 1: warning: not trained") == 1


def test_run_and_evaluate_say_that_nothing_was_learned(command, tmp_path):
    quick = ["--engine", "inline", "--set", "train.rounds=1", "--out", tmp_path / "run"]
    small = ["--set", "model.width=1", "--set", "data.train-rows=0:80"]
    code, _, err = command("run", *quick, *small, "--set", "server.learning-rate=1e-9")
    assert (code, "not trained: accuracy" in err) == (0, True)
    code, _, err = command("evaluate", tmp_path / "run")
    assert (code, "not trained: accuracy" in err) == (0, True)


def test_a_resumed_run_says_why_it_ended(command, tmp_path):
    diverging = ["--set", "server.learning-rate=1e12", "--set", "train.rounds=2"]
    small = ["--set", "model.name=strided-cnn", "--set", "data.train-rows=0:80"]
    run = tmp_path / "run"
    code, _, err = command(
        "run", "--engine", "inline", *diverging, *small, "--out", run
    )
    assert (code, "lower server.learning-rate" in err) == (1, True)
    text = (run / "config.toml").read_text().replace("1000000000000.0", "0.1")
    (run / "config.toml").write_text(text)
    code, _, err = command("run", "--resume", run)
    assert code == 0
    assert "the run ended early: round " in err
    assert "unless" in err
    assert RunFolder(run).read_json(SUMMARY)["rounds"] == 2
