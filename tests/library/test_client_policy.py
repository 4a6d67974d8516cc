"""A federation's folder: certificates, keys, settings, and what a client allows."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from instahide_fl.config import Config
from instahide_fl.deployment.folder_texts import client_settings
from instahide_fl.deployment.limits import Limits
from instahide_fl.deployment.policy import (
    ClientPolicy,
    check_settings,
    read_policy,
)
from instahide_fl.errors import ConfigError, PolicyError


def policy(**changes):
    limits = changes.pop("limits", {})
    values = {"name": "north", "server": "localhost:9443", "data": "mnist-5k"}
    return ClientPolicy(**{**values, **changes, "limits": limits})


@pytest.mark.parametrize(
    ("limits", "settings", "message"),
    [
        ({}, {"instahide.method": "none"}, 'method = "none", it allows "instahide"'),
        ({}, {"instahide.num-mixed": 3}, "num-mixed = 3, it allows 4 or more"),
        (
            {},
            {"instahide.max-coefficient": 0.9},
            "max-coefficient = 0.9, it allows at most 0.65",
        ),
        (
            {},
            {"instahide.min-private-weight": 0.8},
            "min-private-weight = 0.8, it allows at most 0.3",
        ),
        (
            {},
            {"record.rounds": "1", "record.truth": True},
            "record.truth = true, it allows false",
        ),
        (
            {"allow_truth": True},
            {"record.rounds": "1", "record.crafted": "imprint"},
            'record.crafted = "imprint"',
        ),
        ({"max_exposures": 50}, {}, r"max-exposures = 0 \(no limit\), it allows 1 to"),
        (
            {"max_exposures": 50},
            {"instahide.max-exposures": 51, "instahide.exposure-action": "stop"},
            "max-exposures = 51, it allows 1 to 50",
        ),
        (
            {"max_exposures": 50},
            {"instahide.max-exposures": 50},
            'exposure-action = "warn", it allows "stop"',
        ),
        ({}, {"instahide.num-mixed": 33}, "num-mixed = 33, it allows at most 32"),
        ({}, {"instahide.num-private": 1}, "num-private = 1, it allows 2 or more"),
        ({}, {"instahide.max-coefficient": 0.26}, "it allows 0.3 or more"),
        ({}, {"instahide.coefficient-law": "dirichlet"}, 'allows "abs-normal"'),
        ({}, {"instahide.refresh": 10**9}, "refresh = 1000000000"),
        ({}, {"train.batch-size": 7}, "batch-size = 7, it allows 8 or more"),
        ({"modes": ["update"]}, {}, 'train.mode = "gradient", it allows "update"'),
        ({}, {"data.image-size": 512}, "image-size = 512, it allows at most 256"),
        ({}, {"train.mode": "update", "train.local-epochs": 21}, "it allows 1 to 20"),
        ({}, {"train.mode": "update", "train.local-epochs": 0}, "it allows 1 to 20"),
        ({}, {"train.mode": "update", "train.learning-rate": 1e-9}, "1e-05 to 1"),
        (
            {},
            # Each step forgets the one before: the update is the last batch's.
            {"train.mode": "update", "train.weight-decay": 20.0},
            "weight-decay = 20, it allows 2 at this learning rate",
        ),
        (
            {},
            {"train.mode": "update", "train.proximal-mu": 20.0},
            "proximal-mu = 20, it allows 2 at this learning rate",
        ),
        ({"models": ["resnet-9"]}, {}, 'name = "small-cnn", it allows "resnet-9"'),
        ({}, {"model.width": 4096}, "width = 4096, it allows at most 128"),
        ({}, {"model.normalization": "batch"}, 'normalization = "batch"'),
        (
            {"require_secure_aggregation": True},
            {},
            "secure-aggregation.enabled = false, it allows true",
        ),
        (
            {},
            {
                "secure-aggregation.enabled": True,
                "secure-aggregation.largest-value": 1e12,
            },
            "largest-value = 1e.12, it allows at most 1024",
        ),
        ({"max_epsilon": 8.0}, {}, 'allows "dp-sgd" or "local"'),
        (
            {"max_epsilon": 8.0},
            # The server's noise protects from others, not from the server.
            {
                "defense.differential-privacy": "central",
                "server.aggregation": "mean",
            },
            'differential-privacy = "central"',
        ),
        (
            {"max_epsilon": 8.0},
            {"defense.differential-privacy": "dp-sgd"},
            "num-private = 2, dp-sgd protects a private image where it is 1",
        ),
    ],
)
def test_a_client_refuses_what_weakens_its_policy(limits, settings, message):
    config = Config().with_values(settings)
    with pytest.raises(PolicyError, match=r"client north refuses .*" + message):
        check_settings(policy(limits=limits), config)


@pytest.mark.parametrize(
    ("limits", "settings"),
    [
        ({"methods": ["none", "mixup"]}, {"instahide.method": "none"}),
        ({"min_num_mixed": 2}, {"instahide.num-mixed": 2}),
        ({"allow_truth": True}, {"record.rounds": "1", "record.truth": True}),
        (
            {"max_exposures": 50},
            {"instahide.max-exposures": 20, "instahide.exposure-action": "stop"},
        ),
    ],
)
def test_a_client_takes_part_in_what_it_allows(limits, settings):
    check_settings(policy(limits=limits), Config().with_values(settings))


def test_all_that_is_refused_is_named_at_once():
    config = Config().with_values({"instahide.method": "mixup"})
    with pytest.raises(PolicyError) as refused:
        check_settings(policy(limits={"max_exposures": 5}), config)
    assert "instahide.method" in str(refused.value)
    assert "instahide.max-exposures" in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server": "localhost"}, "server must be HOST:PORT"),
        ({"code_hash": "abc"}, "64 hexadecimal digits"),
        ({"limits": {"methods": []}}, "limits.methods must be"),
        ({"limits": {"min_k": 4}}, "unknown setting limits.min-k"),
        ({"limits": {"max-epsilom": 4}}, r"did you mean limits\.max-epsilon"),
        ({"limits": {"std_range": [0.0, 1.0]}}, r"\[LOW, HIGH\] with 0 < LOW"),
        ({"limits": {"mean_range": [1.0]}}, r"\[LOW, HIGH\] with LOW < HIGH"),
        ({"limits": {"models": ["resnet-9", "vgg"]}}, "not 'vgg'"),
        ({"limits": {"min_cohort": 2}}, "min-cohort must be greater than or equal"),
        ({"seeded_client": 0}, "lets the server compute this client's keys"),
        ({"name": "3"}, "not a number alone"),
    ],
)
def test_a_wrong_policy_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        policy(**changes)


def test_a_client_without_a_policy_takes_no_part(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*client\.toml"):
        read_policy(tmp_path)
    (tmp_path / "client.toml").write_text('name = "north"\nserver = "a:1"\n')
    with pytest.raises(ConfigError, match=r"client\.toml: data is missing"):
        read_policy(tmp_path)


def generated(tmp_path):
    text = client_settings("north", "localhost:9443", "")
    (tmp_path / "client.toml").write_text(text)
    return text, read_policy(tmp_path)


def test_the_file_that_is_made_names_and_explains_every_limit(tmp_path):
    text, made = generated(tmp_path)
    lines = text.split("[limits]")[1].splitlines()
    keys = [line.split(" = ")[0] for line in lines if " = " in line and line[0] != "#"]
    fields = [name.replace("_", "-") for name in Limits.model_fields]
    assert sorted(keys) == sorted(fields)
    for before, line in itertools.pairwise(lines):
        if line and line[0] != "#":
            # A comment, or a setting that the same comment explains.
            assert before.startswith("# ") or " = " in before, line
    # A file of an earlier version, without these lines, has the same limits.
    assert made.limits == Limits(pinned_peers=True)


def test_the_file_that_is_made_allows_ordinary_runs(tmp_path):
    _, made = generated(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "deploy-operator.md"
    sample = re.search(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "config.toml").write_text(sample[1])
    for config in (
        Config(),
        Config.from_toml(tmp_path / "config.toml"),
        Config().with_values({"train.mode": "update", "model.name": "resnet-18"}),
        Config().with_values({"secure-aggregation.enabled": True}),
    ):
        check_settings(made, config)
