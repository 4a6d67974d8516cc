"""Masked sums: exact, and uniform without the masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from instahide_fl.aggregation.masking import (
    FixedPoint,
    add_masks,
    flatten_arrays,
    split_vector,
)
from instahide_fl.errors import ProtocolError
from instahide_fl.rng import new_secret


@given(
    clients=st.integers(1, 100),
    largest=st.floats(0.01, 1000),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=50)
def test_a_sum_of_integers_is_the_sum_of_the_numbers(clients, largest, seed):
    numbers = FixedPoint(largest, clients)
    generator = torch.Generator().manual_seed(seed)
    values = (torch.rand(clients, 7, generator=generator).double() * 2 - 1) * largest
    values[:, 0] = largest
    values[:, 1] = -largest
    total = np.zeros(7, np.uint32)
    for row in values:
        total += numbers.encode(row)
    error = (numbers.decode(total) - values.sum(0)).abs().max()
    assert error <= clients * 0.5 / numbers.scale


@pytest.mark.parametrize("value", [2.001, -5.0, float("nan"), float("inf")])
def test_what_does_not_fit_is_refused_not_clipped(value):
    with pytest.raises(ProtocolError, match=r"cannot be masked: .*lower"):
        FixedPoint(2.0, 3).encode(torch.tensor([0.0, value]))


def test_a_masked_vector_is_uniform_and_masks_come_off():
    vector = FixedPoint(1.0, 3).encode(torch.zeros(20_000))
    seeds = [new_secret(), new_secret()]
    masked = add_masks(vector, seeds[:1], seeds[1:])
    assert stats.kstest(masked / 2**32, "uniform").pvalue > 1e-6
    assert (add_masks(masked, seeds[1:], seeds[:1]) == vector).all()


def test_arrays_come_back_from_a_vector():
    arrays = {"b": torch.randn(2, 3), "a": torch.randn(4), "c": torch.tensor(2.0)}
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    back = split_vector(flatten_arrays(arrays, 2.0), shapes)
    for name, array in arrays.items():
        assert torch.equal(back[name], 2 * array)
