"""A federation's folder: certificates, keys, settings, and what a client allows."""

from __future__ import annotations

import pytest

from instahide_fl.config import Config
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
