from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instahide_fl.aggregation.reduction import Node, TreeSum, UpdateSum
from instahide_fl.engine.scheduling import ClientCosts, divide

costs_of_clients = st.lists(st.floats(0.01, 100), max_size=80)


@given(costs_of_clients, st.integers(1, 9))
def test_every_client_runs_once_and_no_worker_waits_long(costs, workers):
    plan = divide(costs, workers)
    assert len(plan) == workers
    assert sorted(itertools.chain(*plan)) == list(range(len(costs)))
    assert all(positions == sorted(positions) for positions in plan)
    if costs:
        longest = max(sum(costs[i] for i in positions) for positions in plan)
        # Of any greedy assignment (Graham 1966).
        assert longest <= sum(costs) / workers + max(costs) + 1e-6


def test_the_longest_client_starts_alone():
    assert divide([1, 1, 8, 1, 1, 1], 2) == [[2], [0, 1, 3, 4, 5]]


@pytest.mark.parametrize(("clients", "workers", "most"), [(64, 4, 1), (100, 2, 3)])
def test_clients_of_one_size_come_back_as_few_sums(clients, workers, most):
    for positions in divide([1.0] * clients, workers):
        tree = TreeSum()
        for position in positions:
            tree.put(Node(0, position), UpdateSum({}, 1.0, 1.0))
        assert 1 <= len(tree.nodes) <= most


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


@given(st.integers(0, 2**32))
def test_noise_makes_no_larger_client_cheaper_and_none_free(seed):
    rng = np.random.default_rng(seed)
    costs = ClientCosts()
    for _ in range(30):
        costs.observe(int(rng.integers(1, 100)), float(rng.exponential()))
    predicted = [costs.predict(images) for images in range(1, 200)]
    assert predicted == sorted(predicted)
    assert predicted[0] >= 0
