from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from instahide_fl.config import Config, EncoderConfig, TrainConfig, parse_assignment
from instahide_fl.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_pyproject_lists_every_setting_with_its_default():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = Config(**project["tool"]["flwr"]["app"]["config"])
    listed_keys = listed.to_run_config()
    expected = {**Config().to_run_config(), "partition.num-clients": 0}
    assert listed_keys == expected
    tables = project["tool"]["flwr"]["app"]["config"]
    flat = {
        f"{table}.{key}" if isinstance(row, dict) else table
        for table, row in tables.items()
        for key in (row if isinstance(row, dict) else [table])
    }
    assert flat == expected.keys()


def test_settings_survive_toml_and_flower(tmp_path):
    config = Config().with_values({"instahide.refresh": 7, "train.mode": "update"})
    assert Config.from_run_config(config.to_run_config()) == config
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert Config.from_toml(tmp_path / "c.toml") == config


def test_automatic_values_follow_the_mode():
    gradient, update = Config(), Config().with_values({"train.mode": "update"})
    assert (gradient.server_learning_rate, gradient.server_momentum) == (0.1, 0.9)
    assert (update.server_learning_rate, update.server_momentum) == (1.0, 0.0)
    assert EncoderConfig(scope="inside", num_mixed=5).private_count == 5
    assert update.resolved().server.learning_rate == 1.0


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("instahide.num-mixd=3", "did you mean instahide.num-mixed"),
        ("instahide.num-mixed=0", "instahide.num-mixed must be .* 1, got 0"),
        ("instahide.num-mixed=four", "valid integer, got 'four'"),
        ("instahide.max-coefficient=0.25", "exceed 1/num-mixed = 0.25, got 0.25"),
        ("instahide.min-private-weight=0.99", None),
        ("instahide.num-private=5", r"num-private must be in 1..4 .* got 5"),
        ("instahide.refresh=0", "'epoch' or .* got 0"),
        ("train.rounds=true", "valid integer, got True"),
        ("train.clients-per-round=11", r"at most 10 \(partition.num-clients\), got 11"),
        ("train.min-updates=11", "at most 10"),
        ("record.holdout-share=0.1", r"record.holdout-share .* set truth = true"),
        ("record.holdout-share=1.0", "holdout-share must be less than 1, got 1.0"),
        ("server.learning-rate=-1", "greater than 0 or 'auto', got -1"),
        ("seed.x=1", "seed is set twice|seed.x is set twice"),
        ("train=1", "train must be a table, got 1"),
        ("nonsense=1", "unknown setting nonsense"),
        ("train.proximal-mu=0.1", "proximal-mu corrects local steps"),
        ("train.control-variates=true", 'set mode = "update"'),
        ("train.schedule=step", "milestones and schedule"),
        ("train.milestones=soon", "rounds separated by commas"),
        ("server.trim-share=0.5", "less than 0.5, got 0.5"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(assignment, expected):
    changes = dict([parse_assignment(assignment)])
    if expected is None:
        assert Config().with_values(changes).instahide.min_private_weight == 0.99
        return
    with pytest.raises(ConfigError, match=expected):
        Config().with_values(changes)


def test_unreachable_private_weight_is_refused():
    with pytest.raises(
        ConfigError, match=r"min-private-weight \(c2\) must be below 0.6"
    ):
        EncoderConfig(max_coefficient=0.3, min_private_weight=0.6)


def test_a_bare_word_is_a_string_and_a_list_is_refused():
    assert parse_assignment("data.dataset=hf:a/b") == ("data.dataset", "hf:a/b")
    assert parse_assignment("train.rounds=5") == ("train.rounds", 5)
    assert Config().with_values({"data.image_size": 8}).data.image_size == 8
    for bad in ("train.rounds", "x=[1]", "=3"):
        with pytest.raises(ConfigError):
            parse_assignment(bad)


def test_a_file_and_its_overrides_are_checked_together(tmp_path):
    path = tmp_path / "cohort.toml"
    path.write_text("[train]\nclients-per-round = 20\n")
    with pytest.raises(ConfigError, match="at most 10"):
        Config.from_toml(path)
    config = Config.from_toml(path, {"partition.num-clients": 50})
    assert config.train.clients_per_round == 20


def test_a_settings_file_that_is_missing_or_broken(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        Config.from_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        Config.from_toml(tmp_path / "bad.toml")


def test_schedules_fall_and_rise_as_they_say():
    def factors(**settings):
        train = TrainConfig(rounds=10, **settings)
        return [round(train.learning_rate_factor(i), 6) for i in range(1, 11)]

    assert factors() == [1.0] * 10
    step = factors(schedule="step", milestones="3, 8", decay_factor=0.5)
    assert step == [1.0] * 3 + [0.5] * 5 + [0.25] * 2
    cosine = factors(schedule="cosine")
    assert cosine[0] == 1
    assert cosine[5] == 0.5
    assert 0 < cosine[-1] < 0.05
    assert factors(warmup_rounds=3)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_shares_that_leave_the_clients_nothing_are_refused():
    recorded = {"record.rounds": "1", "record.truth": True}
    shares = {"record.holdout-share": 0.4, "data.validation-share": 0.6}
    with pytest.raises(ConfigError, match=r"0\.4 and data.validation-share = 0\.6"):
        Config().with_values({**recorded, **shares})


def test_rules_that_need_more_clients_say_how_many():
    krum = {"server.aggregation": "krum", "server.malicious-clients": 4}
    with pytest.raises(ConfigError, match="at most 3 bad updates in a cohort of 10"):
        Config().with_values(krum)
    assert Config().with_values({**krum, "server.malicious-clients": 3})
    scaffold = {"train.mode": "update", "train.control-variates": True}
    with pytest.raises(ConfigError, match=r'set server.aggregation = "mean"'):
        Config().with_values({**scaffold, "server.aggregation": "median"})
    with pytest.raises(ConfigError, match=r"set momentum = 0, got 0\.9"):
        Config().with_values({**scaffold, "train.momentum": 0.9})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.optimizer": "adam"}, r"set server\.optimizer, or mode"),
        (
            {"train.mode": "update", "train.optimizer": "adamw", "train.momentum": 0.9},
            r'set momentum = 0 beside "adamw", got 0\.9',
        ),
        (
            {
                "train.mode": "update",
                "train.optimizer": "adam",
                "train.control-variates": True,
            },
            'set optimizer = "sgd", got "adam"',
        ),
        (
            {
                "train.mode": "update",
                "train.control-variates": True,
                "server.ema": 0.9,
            },
            r"set server\.ema = 0, got 0\.9",
        ),
        (
            {"train.mode": "update", "server.optimizer": "adamw"},
            r'train\.optimizer = "adamw" for the clients',
        ),
        ({"server.ema": 1.0}, r"server\.ema must be less than 1, got 1"),
        ({"train.clip-norm": -1.0}, r"train\.clip-norm must be .* 0, got -1"),
    ],
)
def test_optimizers_that_do_not_go_together_are_refused(changes, expected):
    with pytest.raises(ConfigError, match=expected):
        Config().with_values(changes)


def test_relative_paths_are_the_users_not_those_of_an_engines_process(tmp_path):
    (tmp_path / "set").mkdir()
    given = {
        "data.root": "files",
        "pool.source": "../pool",
        "model.initial-weights": "runs/before",
        "data.dataset": "hf:set",
    }
    located = Config().with_values(given).with_absolute_paths(tmp_path).to_run_config()
    assert located["data.root"] == str(tmp_path / "files")
    assert located["pool.source"] == str(tmp_path.parent / "pool")
    assert located["model.initial-weights"] == str(tmp_path / "runs" / "before")
    assert located["data.dataset"] == f"hf:{tmp_path / 'set'}"
    hub = {"data.dataset": "hf:uoft-cs/cifar10"}
    assert Config().with_values(hub).with_absolute_paths(
        tmp_path
    ) == Config().with_values(hub)
    assert Config().with_absolute_paths(tmp_path) == Config()
