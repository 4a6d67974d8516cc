"""Whoever adds what, in whatever order: the same bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instahide_fl.aggregation.reduction import (
    TreeNode,
    TreeSum,
    UpdateSum,
    is_finite,
    tree_mean,
)
from instahide_fl.aggregation.weights import weigh_by_images, weigh_equally
from instahide_fl.errors import RoundError
from instahide_fl.types import ClientUpdate

DTYPES = (torch.float32, torch.float16, torch.float64)


def update(arrays, examples=1):
    return ClientUpdate(arrays, examples, "delta", {})


def random_updates(rng, count, alike, dtypes=(torch.float32,)):
    """Values of very different size, so that every order of adding shows."""
    updates = []
    for _ in range(count):
        dtype = dtypes[rng.integers(len(dtypes))]
        large = rng.standard_normal(4) * 10.0 ** rng.integers(-3, 4)
        arrays = {
            "a": torch.from_numpy(large).to(dtype),
            "b": torch.from_numpy(rng.standard_normal((2, 3))).to(dtype),
        }
        updates.append(update(arrays, 7 if alike else int(rng.integers(1, 100))))
    return updates


def copy_of(one):
    return update({n: a.clone() for n, a in one.arrays.items()}, one.num_examples)


def leaf(one, owned=False):
    return UpdateSum.of(one, one.num_examples, owned)


def assert_same_bits(found, expected):
    assert found.weight == expected.weight
    found, expected = found.mean(), expected.mean()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert torch.equal(found[name], array)


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 40),
    workers=st.integers(1, 5),
    contiguous=st.booleans(),
    alike=st.booleans(),
    dtypes=st.sampled_from([DTYPES[:1], DTYPES[:2], DTYPES]),
)
def test_any_division_of_the_work_gives_the_same_bits(
    seed, count, workers, contiguous, alike, dtypes
):
    rng = np.random.default_rng(seed)
    updates = random_updates(rng, count, alike, dtypes)
    kept = [copy_of(one) for one in updates]
    present = np.flatnonzero(rng.random(count) < 0.8).tolist()
    one_by_one = TreeSum()
    for i in present:
        one_by_one.put(TreeNode(0, i), leaf(copy_of(updates[i])))
    owner = rng.integers(workers, size=count)
    if contiguous:
        owner.sort()
    own = [TreeSum() for _ in range(workers)]
    for i in rng.permutation(present).astype(int).tolist():
        given_away = bool(rng.integers(2))
        one = copy_of(updates[i]) if given_away else updates[i]
        own[owner[i]].put(TreeNode(0, i), leaf(one, given_away))
    sent = [(node, part) for tree in own for node, part in tree.nodes.items()]
    server = TreeSum()
    for i in rng.permutation(len(sent)):
        server.put(*sent[i])
    expected, found = one_by_one.total(), server.total()
    assert (found is None) == (expected is None) == (not present)
    if found is not None and expected is not None:
        assert_same_bits(found, expected)
    for one, before in zip(updates, kept, strict=True):
        assert all(torch.equal(one.arrays[n], before.arrays[n]) for n in "ab")


@given(st.integers(0, 2**32), st.integers(1, 30), st.booleans())
def test_means_are_numpys_and_leave_the_updates_alone(seed, count, alike):
    rng = np.random.default_rng(seed)
    updates = random_updates(rng, count, alike)
    before = [copy_of(one).arrays for one in updates]
    weights = [one.num_examples for one in updates]
    for found, weight in (
        (tree_mean(updates, weigh_by_images), weights),
        (tree_mean(updates, weigh_equally), None),
    ):
        for name, array in found.items():
            stacked = np.stack([one.arrays[name].double().numpy() for one in updates])
            expected = np.average(stacked, axis=0, weights=weight)
            bound = 1e-6 * np.abs(stacked).max() * count
            np.testing.assert_allclose(array.numpy(), expected, rtol=0, atol=bound)
    for one, kept in zip(updates, before, strict=True):
        assert all(torch.equal(one.arrays[name], kept[name]) for name in kept)


def test_memory_that_is_given_away_is_written_to_and_gives_the_same_bits(rng):
    updates = random_updates(rng, 4, alike=True)
    expected = leaf(updates[0]).plus(leaf(updates[1]))
    memory = updates[0].arrays["a"].data_ptr()
    found = leaf(updates[0], owned=True).plus(leaf(updates[1]))
    assert found.arrays["a"].data_ptr() == memory
    assert_same_bits(found, expected)


def test_asking_for_the_mean_twice_gives_the_same_mean():
    total = leaf(update({"a": torch.ones(2)}, 3)).plus(
        leaf(update({"a": torch.full((2,), 3.0)}, 3))
    )
    assert [total.mean()["a"].tolist() for _ in range(2)] == [[2, 2], [2, 2]]


def test_halves_are_added_as_floats():
    updates = [update({"a": torch.full((1,), 2048.0).half()}) for _ in range(3)]
    updates.append(update({"a": torch.ones(1).half()}))
    mean = tree_mean(updates, weigh_equally)["a"]  # in half precision 2048 + 1 is 2048
    assert mean.dtype == torch.float32
    assert mean.item() == (3 * 2048 + 1) / 4


@pytest.mark.parametrize("other", [{"a": torch.zeros(3)}, {"b": torch.zeros(2)}, {}])
def test_updates_that_do_not_fit_together_are_refused(other):
    with pytest.raises(RoundError, match=r"disagree on a: \(2,\) and"):
        tree_mean([update({"a": torch.zeros(2)}), update(other)], weigh_equally)


def test_the_parameter_that_does_not_fit_is_named():
    one, other = ({"a": torch.zeros(2), "b": torch.zeros(n)} for n in (1, 2))
    with pytest.raises(RoundError, match=r"disagree on b: \(1,\) and \(2,\)"):
        tree_mean([update(one), update(other)], weigh_by_images)


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(RoundError, match="no client"):
        tree_mean([], weigh_by_images)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_value_that_is_not_finite_is_found(value):
    array = torch.zeros(2, 3)
    assert is_finite(array)
    assert is_finite(torch.zeros(0))
    array[1, 2] = value
    assert not is_finite(array)
    total = leaf(update({"a": torch.ones(2, 3)})).plus(leaf(update({"a": array})))
    assert not total.is_bounded()
