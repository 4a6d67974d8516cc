"""Every experiment can be run, and every result is of one that can."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from instahide_fl.config import Config
from instahide_fl.study.plan import plan_runs
from instahide_fl.study.settings import StudyConfig

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FILES = sorted(EXPERIMENTS.glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_an_experiment_asks_a_question_and_its_settings_are_valid(path):
    assert path.read_text().startswith("# ")
    if "methods" in tomllib.loads(path.read_text()):
        assert plan_runs(StudyConfig.from_toml(path), EXPERIMENTS)
    else:
        Config.from_toml(path)
    assert f"{path.name}" in (EXPERIMENTS / "README.md").read_text()


def test_results_belong_to_experiments_and_were_started_as_their_row_says():
    for path in sorted((EXPERIMENTS / "results").glob("*.json")):
        config = EXPERIMENTS / f"{path.stem}.toml"
        for row in json.loads(path.read_text()):
            changes = dict(one.split("=", 1) for one in row["set"])
            rounds = int(
                changes.get("train.rounds", Config.from_toml(config).train.rounds)
            )
            assert row["rounds"] == rounds == row["curve"][-1][0]
            assert row["accuracy"] == row["curve"][-1][1]
