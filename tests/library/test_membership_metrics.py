from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instahide_fl.errors import ShapeError
from instahide_fl.metrics.membership import (
    MAX_CURVE_POINTS,
    auc_interval,
    membership_metrics,
    roc_curve,
)

# Few distinct values, so that scores tie.
SCORES = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.inf, -math.inf])),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(SCORES, SCORES)
def test_figures_are_those_of_counting_pairs_and_thresholds(members, others):
    metrics = membership_metrics(members, others)
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    assert metrics["auc"] == pytest.approx(np.mean(pairs))
    for name, rate in metrics["tpr_at_fpr"].items():
        thresholds = [*members, *others, math.inf]
        reached = [
            np.mean([m >= t for m in members])
            for t in thresholds
            if np.mean([o >= t for o in others]) <= float(name)
        ]
        assert rate == pytest.approx(max(reached, default=0.0))
        low, high = metrics["tpr_interval"][name]
        assert 0 <= low <= rate <= high <= 1
    low, high = metrics["auc_interval"]
    assert 0 <= low <= metrics["auc"] <= high <= 1
    assert low < high
    assert (metrics["members"], metrics["non_members"]) == (len(members), len(others))
    assert json.loads(json.dumps(metrics)) == metrics


@settings(deadline=None)
@given(SCORES, SCORES)
def test_order_is_all_that_counts_and_sides_mirror_each_other(members, others):
    metrics = membership_metrics(members, others)
    stretched = [np.tanh(np.array(side) / 2) for side in (members, others)]
    assert membership_metrics(*stretched) == metrics
    tensors = [torch.tensor(side[::-1]) for side in (members, others)]
    assert membership_metrics(*tensors) == metrics
    mirrored = membership_metrics(others, members)
    assert mirrored["auc"] == pytest.approx(1 - metrics["auc"])
    low, high = metrics["auc_interval"]
    assert mirrored["auc_interval"] == pytest.approx([1 - high, 1 - low], abs=1e-9)


@settings(deadline=None)
@given(SCORES, SCORES)
def test_the_curve_rises_from_none_to_all_and_has_the_area(members, others):
    false_rates, true_rates = roc_curve(members, others)
    for rates in (false_rates, true_rates):
        assert rates[0] == 0
        assert rates[-1] == 1
        assert (np.diff(rates) >= 0).all()
    area = np.trapezoid(true_rates, false_rates)
    assert area == pytest.approx(membership_metrics(members, others)["auc"])


def test_few_sure_members_are_evidence_and_lucky_ones_are_not(rng):
    draws = [membership_metrics(*rng.normal(size=(2, 100))) for _ in range(300)]
    lucky = [draw["tpr_p_value"]["0.01"] <= 0.05 for draw in draws]
    assert np.mean(lucky) <= 0.08
    members, others = rng.normal(size=(2, 400))
    members[:20] += 10
    metrics = membership_metrics(members, others)
    assert metrics["auc"] < 0.6
    assert metrics["tpr_p_value"]["0.01"] < 1e-3


def test_a_long_curve_is_thinned_where_it_is_not_small(rng):
    metrics = membership_metrics(rng.normal(1, 1, 3000), rng.normal(0, 1, 3000))
    curve = metrics["roc"]
    assert len(curve["fpr"]) == len(curve["tpr"]) <= MAX_CURVE_POINTS
    assert curve["fpr"][0] == 0
    assert (curve["fpr"][-1], curve["tpr"][-1]) == (1, 1)
    at_one_percent = max(
        t for f, t in zip(curve["fpr"], curve["tpr"], strict=True) if f <= 0.01
    )
    assert at_one_percent == pytest.approx(metrics["tpr_at_fpr"]["0.01"], abs=0.01)


def test_intervals_cover_the_area_as_often_as_they_say(rng):
    true_area, covered = 0.7602, 0  # P(N(1,1) > N(0,1)) = Phi(1 / sqrt(2))
    for _ in range(400):
        members, others = rng.normal(1, 1, 40), rng.normal(0, 1, 60)
        low, high = membership_metrics(members, others)["auc_interval"]
        covered += low <= true_area <= high
    assert 0.92 <= covered / 400 <= 0.99


def test_the_interval_narrows_with_more_images():
    widths = [np.diff(auc_interval(1.0, n, n))[0] for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.01


def test_chance_is_no_evidence_and_a_clear_order_is(rng):
    noise = rng.normal(0, 1, 400)
    assert membership_metrics(noise[:200], noise[200:])["p_value"] > 0.01
    assert membership_metrics(noise[:200] + 1, noise[200:])["p_value"] < 1e-6
    assert membership_metrics([1.0, 1.0], [1.0])["p_value"] == 1


@pytest.mark.parametrize(
    ("members", "others", "reason"),
    [
        ([1.0, math.nan], [0.0], "1 of 2 member scores are NaN"),
        ([1.0], [math.nan], "1 of 1 non-member scores are NaN"),
        ([], [0.0], "member scores must be one number"),
        ([1.0], np.zeros((2, 1)), "non-member scores must be .* shape"),
    ],
)
def test_scores_that_say_nothing_are_refused(members, others, reason):
    with pytest.raises(ShapeError, match=reason):
        membership_metrics(members, others)
