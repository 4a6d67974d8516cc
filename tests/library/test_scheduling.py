from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from instahide_fl.aggregation.reduction import TreeNode, TreeSum, UpdateSum
from instahide_fl.engine.ray.scheduling import (
    MAX_CALL_BATCHES,
    TOLERANCE,
    ClientCosts,
    divide,
    evaluation_calls,
)

many_costs = st.one_of(
    st.lists(st.floats(0.01, 100), max_size=80),
    st.builds(lambda count, cost: [cost] * count, st.integers(1, 300), st.floats(1, 9)),
)
few_costs = st.lists(st.floats(0.01, 100), min_size=1, max_size=7)


def longest_load(costs, plan):
    return max(sum(costs[i] for i in positions) for positions in plan)


@given(many_costs, st.integers(1, 9))
@example([1.0] * 80, 3)
def test_every_client_runs_once_and_no_worker_waits_long(costs, workers):
    plan = divide(costs, workers)
    assert len(plan) == workers
    assert sorted(itertools.chain(*plan)) == list(range(len(costs)))
    assert all(positions == sorted(positions) for positions in plan)
    if costs:
        average, most = sum(costs) / workers, max(costs)
        # The second is Graham's bound (1966) of any greedy assignment; the first is
        # conceded for larger subtrees.
        allowed = max(TOLERANCE * max(average, most), average + most)
        assert longest_load(costs, plan) <= allowed * (1 + 1e-9)


@given(st.integers(0, 200), st.integers(1, 9))
def test_every_batch_is_evaluated_once_in_calls_within_a_fair_share(batches, workers):
    calls = list(evaluation_calls(batches, workers))
    assert sorted(itertools.chain(*calls)) == list(range(batches))
    longest = min(MAX_CALL_BATCHES, math.ceil(batches / workers))
    assert all(1 <= len(call) <= longest for call in calls)


@given(few_costs, st.integers(1, 3))
def test_no_plan_is_much_shorter(costs, workers):
    every_plan = np.array(list(itertools.product(range(workers), repeat=len(costs))))
    loads = [(every_plan == worker) @ np.array(costs) for worker in range(workers)]
    shortest = np.max(loads, axis=0).min()
    # Graham (1969) of longest processing time first. Subtrees do not spoil it: where
    # a single client decides, all that came before it are larger than any subtree.
    allowed = max(TOLERANCE, 4 / 3 - 1 / (3 * workers)) * shortest
    assert longest_load(costs, divide(costs, workers)) <= allowed * (1 + 1e-9)


def test_the_longest_client_starts_alone():
    assert divide([1, 1, 8, 1, 1, 1], 2) == [[2], [0, 1, 3, 4, 5]]


def count_sums(positions):
    tree = TreeSum()
    for position in positions:
        tree.put(TreeNode(0, position), UpdateSum({}, 1.0, 1.0))
    return len(tree.nodes)


@given(st.integers(0, 8), st.integers(0, 3), st.floats(0.01, 100))
def test_powers_of_two_of_clients_of_one_size_come_back_as_one_sum(each, times, cost):
    plan = divide([cost] * (2**each * 2**times), 2**times)
    assert [len(positions) for positions in plan] == [2**each] * 2**times
    assert [count_sums(positions) for positions in plan] == [1] * 2**times


def test_clients_of_one_size_come_back_as_few_sums():
    assert all(count_sums(positions) <= 3 for positions in divide([1.0] * 100, 2))


def test_without_clients_there_is_nothing_to_do():
    assert divide([], 3) == [[], [], []]


def test_costs_are_images_until_measured_and_then_seconds():
    costs = ClientCosts()
    assert [costs.predict(images) for images in (0, 5, 50)] == [1, 5, 50]
    for images in (10, 20, 40):
        costs.observe(images, 0.5 + 0.01 * images)
    assert costs.predict(100) == pytest.approx(1.5)
    costs.forget()
    assert costs.predict(100) == pytest.approx(1.5)


def test_clients_of_one_size_cost_what_they_took():
    costs = ClientCosts()
    for seconds in (0.1, 0.3):
        costs.observe(50, seconds)
    assert costs.predict(50) == pytest.approx(0.2)
    assert costs.predict(100) == pytest.approx(0.4)


@given(
    fixed=st.floats(0.01, 10),
    each=st.floats(0, 0.1),
    sizes=st.lists(st.integers(1, 1000), min_size=2),
    asked=st.integers(1, 2000),
)
def test_a_line_is_found(fixed, each, sizes, asked):
    assume(np.std(sizes) > 0.1 * np.mean(sizes))
    costs = ClientCosts()
    for images in sizes:
        costs.forget()
        costs.observe(images, fixed + each * images)
    assert costs.predict(asked) == pytest.approx(fixed + each * asked, rel=1e-6)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(1e-6, 1e4), st.booleans()),
        min_size=1,
    )
)
def test_noise_makes_no_larger_client_cheaper_and_none_free(measured):
    costs = ClientCosts()
    for images, seconds, new_round in measured:
        if new_round:
            costs.forget()
        costs.observe(images, seconds)
    predicted = [costs.predict(images) for images in (1, 2, 10, 1000, 10**6)]
    assert predicted == sorted(predicted)
    assert predicted[0] > 0


def test_a_client_without_images_can_be_measured():
    costs = ClientCosts()
    costs.observe(0, 0.5)
    assert costs.predict(0) == 0.5
