"""The choice of a range, and the mapping of stored values to 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instahide_fl.data.value_range import ValueSummary, choose_range, map_to_8_bits


@pytest.mark.parametrize(
    ("low", "high", "is_float", "expected"),
    [
        (0, 255, False, (0, 255)),
        (3, 193, False, (0, 255)),
        (0, 1000, False, (0, 1023)),
        (465, 3099, False, (0, 4095)),
        (0, 16_000, False, (0, 16_383)),
        (0, 65_535, False, (0, 65_535)),
        (0, 2**31 - 1, False, (0, 2**31 - 1)),
        (0, 2**32 - 1, False, (0, 2**32 - 1)),
        (0, 100_000, False, (0, 100_000)),  # of 24 bits it would use 0.6%
        (0, 1, False, (0, 1)),  # a mask
        (-1000, 1000, False, (-1000, 1000)),
        (0.1, 0.9, True, (0, 1)),
        (0.0, 193.0, True, (0, 255)),
        (0.0, 1.5, True, (0.0, 1.5)),  # of 0 to 255 it would use 0.6%
        (-1.0, 1.0, True, (-1, 1)),
        (-1000.0, 3000.0, True, (-1000, 3000)),
    ],
)
def test_the_range_of_usual_kinds_of_pictures(low, high, is_float, expected):
    assert choose_range(low, high, is_float=is_float)[0] == expected


def test_equal_values_allow_no_range():
    with pytest.raises(ValueError, match="all values are -5"):
        choose_range(-5, -5, is_float=False)


NUMBERS = st.integers(-(10**6), 10**6)


@settings(max_examples=200, deadline=None)
@given(values=st.lists(NUMBERS, min_size=2, max_size=9, unique=True))
def test_the_mapping_keeps_order_and_ends(values):
    array = np.sort(np.array(values)) / 1000
    low, high = array[0], array[-1]
    mapped = map_to_8_bits(array, (low, high))
    assert (mapped[0], mapped[-1]) == (0, 255)
    assert (np.diff(mapped.astype(int)) >= 0).all()
    exact = (array - low) / (high - low) * 255
    assert np.abs(mapped - exact).max() <= 0.5 + 1e-6
    beyond = map_to_8_bits(np.array([low - 1e7, high + 1e7]), (low, high))
    assert beyond.tolist() == [0, 255]


@settings(max_examples=200, deadline=None)
@given(low=st.integers(0, 2**32 - 1), spread=st.integers(0, 2**32 - 1))
def test_every_chosen_range_holds_the_values_and_is_used(low, spread):
    high = min(low + spread, 2**32 - 1)
    bottom, top = choose_range(low, high, is_float=False)[0] if high else (0, 1)
    assert bottom <= low <= high <= top
    assert high * 8 >= top or top == 1


def test_eight_bit_values_stay_as_they_are():
    values = np.arange(256, dtype=np.uint16)
    assert map_to_8_bits(values, (0, 255)).tolist() == values.tolist()
    full = np.array([0, 0x80FF, 0xFFFF], np.uint16)
    assert map_to_8_bits(full, (0, 65535)).tolist() == [0, 0x80, 0xFF]


def test_a_summary_counts_what_is_outside_and_what_is_no_number():
    values = np.array([[-2.0, 0.0, np.nan], [np.inf, 7.0, 9.0]])
    summary = ValueSummary.of(values, (0.0, 8.0))
    expected = ValueSummary(-2.0, 9.0, num_values=6, num_outside=2, num_not_finite=2)
    assert summary == expected
    assert ValueSummary().joined(summary) == summary
