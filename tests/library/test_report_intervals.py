"""Intervals of the figures in reports."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from instahide_fl.report.data_table import DataTable, two_decimals
from instahide_fl.report.leakage import mean_interval


def seeds(means, spread=0.1, images=25, **columns):
    rows = {"ssim_mean": means, "ssim_spread": spread, "images": images, **columns}
    return pd.DataFrame(rows)


def test_one_seed_has_its_own_interval_or_that_of_its_spread():
    single = seeds([0.4], ssim_low=[0.31], ssim_high=[0.52])
    assert mean_interval(single, "ssim", "images") == (0.31, 0.52)
    low, high = mean_interval(seeds([0.4]), "ssim", "images")  # of an earlier version
    assert (low, high) == pytest.approx(
        (0.4 - 1.96 * 0.02, 0.4 + 1.96 * 0.02), abs=0.005
    )
    assert mean_interval(seeds([np.nan]), "ssim", "images") is None
    assert mean_interval(seeds([0.4]), "folded_ssim", "images") is None


def test_seeds_that_differ_widen_the_interval(rng):
    means = list(rng.normal(0.5, 0.1, 12))
    low, high = mean_interval(seeds(means, spread=0.0), "ssim", "images")
    error = np.std(means) / 12**0.5
    assert (low, high) == pytest.approx(
        (np.mean(means) - 1.96 * error, np.mean(means) + 1.96 * error), abs=0.01
    )
    wider = mean_interval(seeds(means, spread=0.5), "ssim", "images")
    assert wider[0] < low < high < wider[1]


def test_people_read_an_interval_behind_its_mean():
    frame = pd.DataFrame(
        {"private": [0.4, 0.3], "low": [0.31, None], "high": [0.52, None]}
    )
    table = DataTable(
        name="attacks",
        title="",
        caption="",
        frame=frame,
        formats={"private": two_decimals},
        intervals={"private": ("low", "high")},
    )
    assert table.columns == ["private"]
    assert table.rows == [["0.40 [0.31, 0.52]"], ["0.30"]]
