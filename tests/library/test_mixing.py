from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instahide_fl.config import EncoderConfig
from instahide_fl.encoding.mixing import (
    check_acceptance,
    draw_coefficients,
    draw_distinct,
    draw_sign_bits,
    mix_and_flip,
    mix_targets,
)
from instahide_fl.errors import ConfigError, ShapeError
from instahide_fl.types import unpack_signs


@given(
    mixed=st.integers(2, 8),
    scope=st.sampled_from(["inside", "cross"]),
    law=st.sampled_from(["abs-normal", "dirichlet"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_coefficients_satisfy_both_bounds_jointly(mixed, scope, law, seed):
    config = EncoderConfig(num_mixed=mixed, scope=scope, coefficient_law=law)
    lam = draw_coefficients(500, config, np.random.default_rng(seed))
    assert lam.shape == (500, mixed)
    assert (lam >= 0).all()
    torch.testing.assert_close(lam.sum(dim=1), torch.ones(500))
    assert lam.max() <= config.max_coefficient
    if scope == "cross" and mixed > 2:
        assert lam[:, :2].sum(dim=1).min() >= config.min_private_weight


def test_coefficients_follow_the_law_given_the_bounds():
    # E[lambda_0] and E[lambda_0 + lambda_1] of cross k = 6, from 400,000 draws of a
    # separate program.
    lam = draw_coefficients(
        100_000, EncoderConfig(num_mixed=6), np.random.default_rng(1)
    )
    assert lam[:, 0].mean().item() == pytest.approx(0.218, abs=0.002)
    assert lam[:, :2].sum(dim=1).mean().item() == pytest.approx(0.435, abs=0.002)


def test_one_image_alone_has_coefficient_one(rng):
    config = EncoderConfig(num_mixed=1, scope="inside")
    assert draw_coefficients(3, config, rng).tolist() == [[1.0]] * 3


def test_bounds_that_hardly_any_draw_meets_are_refused():
    config = EncoderConfig(num_mixed=8, max_coefficient=0.1251, scope="inside")
    with pytest.raises(ConfigError, match="accept only"):
        check_acceptance(config)


@given(
    population=st.integers(1, 12),
    data=st.data(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_distinct_draws_are_distinct_in_range_and_avoid_the_excluded(
    population, data, seed
):
    columns = data.draw(st.integers(0, population - 1))
    rng = np.random.default_rng(seed)
    exclude = torch.from_numpy(rng.integers(0, population, 50))
    drawn = draw_distinct(50, columns, population, rng, exclude)
    assert drawn.shape == (50, columns)
    for row, own in zip(drawn.tolist(), exclude.tolist(), strict=True):
        assert len({*row, own}) == columns + 1
        assert all(0 <= value < population for value in row)


def test_every_ordered_choice_is_equally_likely(rng):
    drawn = draw_distinct(60_000, 2, 4, rng)
    counts = Counter(map(tuple, drawn.tolist()))
    assert len(counts) == 12
    assert max(counts.values()) < 1.06 * 5000
    assert min(counts.values()) > 0.94 * 5000


def test_distinct_draws_need_a_large_enough_population(rng):
    with pytest.raises(ShapeError):
        draw_distinct(1, 3, 3, rng, exclude=torch.tensor([0]))


def test_signs_are_fair_and_independent(rng):
    signs = unpack_signs(draw_sign_bits(4000, 45, rng), (4000, 3, 3, 5))
    assert signs.dtype == torch.int8
    assert set(signs.unique().tolist()) == {-1, 1}
    flat = signs.view(4000, -1).double()
    assert flat.mean(dim=0).abs().max() < 0.08
    correlation = flat.T @ flat / 4000 - torch.eye(45)
    assert correlation.abs().max() < 0.1


@pytest.mark.parametrize("mixed", [1, 4, 6])
def test_mix_and_flip_matches_the_loop_in_the_paper(mixed, rng):
    sources = torch.from_numpy(rng.standard_normal((mixed, 3, 2, 5, 5))).float()
    lam = torch.from_numpy(rng.dirichlet(np.ones(mixed), 3)).float()
    signs = unpack_signs(draw_sign_bits(3, 50, rng), (3, 2, 5, 5))
    expected = torch.zeros(3, 2, 5, 5)
    for b in range(3):
        for j in range(mixed):
            expected[b] += lam[b, j] * sources[j, b]
    untouched = sources.clone()
    torch.testing.assert_close(mix_and_flip(iter(sources), lam), expected)
    torch.testing.assert_close(mix_and_flip(sources, lam, signs), expected * signs)
    assert torch.equal(sources, untouched)


def test_mix_and_flip_refuses_shapes_that_disagree(rng):
    sources = [torch.zeros(3, 1, 2, 2)] * 2
    with pytest.raises(ShapeError, match="need 3 sources, got 2"):
        mix_and_flip(sources, torch.ones(3, 3) / 3)
    with pytest.raises(ShapeError, match="that many"):
        mix_and_flip(sources, torch.ones(3, 1))
    with pytest.raises(ShapeError, match="signs"):
        mix_and_flip(sources, torch.ones(3, 2) / 2, torch.ones(3, 2, 2))


def test_soft_targets_add_up_labels_that_occur_twice():
    lam = torch.tensor([[0.3, 0.2], [0.4, 0.1]])
    labels = torch.tensor([[2, 2], [0, 1]])
    expected = torch.tensor([[0, 0, 0.5], [0.4, 0.1, 0]])
    torch.testing.assert_close(mix_targets(lam, labels, 3), expected)
