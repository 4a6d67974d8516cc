"""Transforms of updates: each against its definition, and their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instahide_fl.config import Config
from instahide_fl.config.defense import DefenseConfig
from instahide_fl.defenses.transforms import (
    add_noise,
    apply_transforms,
    clip,
    l2_norm,
    prune,
    sign,
)
from instahide_fl.errors import ConfigError
from instahide_fl.rng import stream


def arrays_of(seed, scale=1.0):
    rng = stream(seed, "arrays")
    shapes = {"b": (7,), "a": (3, 4, 2), "empty": (0,), "c": ()}
    return {
        n: scale * torch.tensor(rng.normal(size=s)).float() for n, s in shapes.items()
    }


@given(st.integers(0, 99), st.floats(0, 0.999))
@settings(deadline=None, max_examples=50)
def test_prune_keeps_the_largest_entries_of_each_tensor(seed, share):
    given_arrays = arrays_of(seed)
    for name, array in prune(given_arrays, share).items():
        before = given_arrays[name]
        zeroed = int(share * array.numel())
        assert int((array == 0).sum()) == zeroed
        assert torch.equal(array[array != 0], before[array != 0])
        if 0 < zeroed < array.numel():
            kept = before[array != 0].abs().min()
            assert kept > before[array == 0].abs().max()


def test_prune_leaves_ties_at_the_quantile_alone():
    assert torch.equal(prune({"a": torch.ones(10)}, 0.5)["a"], torch.ones(10))


@given(st.integers(0, 99), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=50)
def test_clip_bounds_the_norm_of_the_whole_update_and_keeps_its_direction(
    seed, scale, bound
):
    before = arrays_of(seed, scale)
    after = clip(before, bound)
    assert l2_norm(after) <= bound * (1 + 1e-6)
    factor = min(1.0, bound / l2_norm(before))
    for name, array in after.items():
        torch.testing.assert_close(array, before[name] * factor)


def test_noise_has_the_deviation_asked_for_and_follows_its_stream():
    zeros = {"a": torch.zeros(200, 100), "b": torch.zeros(50)}
    first = add_noise(zeros, 0.3, stream(0, "noise"))
    again = add_noise(dict(reversed(zeros.items())), 0.3, stream(0, "noise"))
    other = add_noise(zeros, 0.3, stream(1, "noise"))
    assert torch.equal(first["b"], again["b"])
    assert not torch.equal(first["b"], other["b"])
    # 20,000 draws: four standard errors of mean and of standard deviation.
    assert abs(float(first["a"].mean())) < 4 * 0.3 / 20000**0.5
    assert abs(float(first["a"].std()) - 0.3) < 4 * 0.3 / 40000**0.5
    assert first["a"].dtype == torch.float32


def test_no_transform_but_noise_makes_an_update_longer():
    before = arrays_of(3)
    for after in (prune(before, 0.5), sign(before), clip(before, 0.1)):
        assert l2_norm(after) <= l2_norm(before) * (1 + 1e-6)
    after = sign({"a": torch.tensor([3.0, -1.0, 0.0, 0.0])})["a"]
    assert torch.equal(after, torch.tensor([1.0, -1.0, 0.0, 0.0]))


def test_transforms_act_in_their_order_and_leave_running_statistics_alone():
    arrays = {"w": torch.tensor([3.0, 4.0]), "mean": torch.tensor([100.0])}
    pruned_first = DefenseConfig(transforms="prune, clip", prune_share=0.5)
    clipped_first = DefenseConfig(transforms="clip, prune", prune_share=0.5)
    one, other = (
        apply_transforms(arrays, {"mean"}, config, np.random.default_rng(0))
        for config in (pruned_first, clipped_first)
    )
    torch.testing.assert_close(one["w"], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(other["w"], torch.tensor([0.0, 0.8]))
    assert torch.equal(one["mean"], arrays["mean"])
    assert torch.equal(arrays["w"], torch.tensor([3.0, 4.0]))


def test_client_level_privacy_clips_last():
    central = DefenseConfig(transforms="prune", differential_privacy="central")
    local = DefenseConfig(transforms="prune", differential_privacy="local")
    assert central.transform_names == ("prune", "clip")
    assert local.transform_names == ("prune", "clip", "noise")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"transforms": "clp"}, "clip, noise, not 'clp'"),
        (
            {"transforms": "noise"},
            "defense.transforms .*noise after clip.* got 'noise'",
        ),
        ({"transforms": "noise, clip"}, "noise after clip"),
        ({"transforms": "clip, clip"}, "clip is there twice"),
        ({"prune-share": 1.0}, "defense.prune-share must be less than 1, got 1.0"),
        (
            {"transforms": "clip, noise", "differential-privacy": "local"},
            'defense.differential-privacy = "local" has its own clip',
        ),
        (
            {"transforms": "clip, noise", "differential-privacy": "dp-sgd"},
            'defense.differential-privacy = "dp-sgd" has its own noise',
        ),
    ],
)
def test_a_bad_table_is_explained(changes, expected):
    with pytest.raises(ConfigError, match=expected):
        DefenseConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"differential-privacy": "central"},
            'set server.aggregation = "mean", got "weighted-mean"',
        ),
        ({"differential-privacy": "local"}, 'set server.aggregation = "mean"'),
        (
            {"differential-privacy": "dp-sgd", "model.normalization": "batch"},
            'set model.normalization = "group"',
        ),
        (
            {"differential-privacy": "dp-sgd", "model.normalization": "local-batch"},
            'set model.normalization = "group"',
        ),
        (
            {"differential-privacy": "dp-sgd", "train.precision": "bfloat16"},
            "bounds nothing",
        ),
        (
            {
                "transforms": "prune",
                "train.mode": "update",
                "train.control-variates": True,
            },
            "no defence changes them",
        ),
    ],
)
def test_a_combination_that_cannot_be_says_why_and_what_to_set(changes, expected):
    dotted = {n if "." in n else f"defense.{n}": v for n, v in changes.items()}
    with pytest.raises(ConfigError, match=expected):
        Config().with_values(dotted)


def test_a_list_in_a_settings_file_is_taken_as_text(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[defense]\ntransforms = ["clip", "noise"]\n')
    config = Config.from_toml(path)
    assert config.defense.transform_names == ("clip", "noise")
    assert Config.from_run_config(config.to_run_config()) == config
