"""How well scores tell members of the training set from images that were held out.

After Carlini et al., "Membership Inference Attacks From First Principles" (IEEE S&P
2022), section III: the area under the ROC curve says how scores order images on
average, the true positive rate at a small false positive rate says whether an adversary
can be sure of any single one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.errors import ShapeError
from instahide_fl.metrics.intervals import CONFIDENCE, clopper_pearson

FALSE_POSITIVE_RATES = (0.001, 0.01)
MAX_CURVE_POINTS = 200

Scores: TypeAlias = Tensor | NDArray[np.floating[Any]] | Sequence[float]
"""[N], one score an image, higher for images that are likelier to be members."""


def membership_metrics(
    member_scores: Scores, non_member_scores: Scores
) -> dict[str, Any]:
    """Return the figures of a membership attack as JSON values.

    Args:
        member_scores: The scores [M] of members, higher for likelier members; any real
            type, infinite values included.
        non_member_scores: The scores [N] of images that were held out.

    Returns:
        "auc", in [0, 1], 0.5 at chance, equal scores counting half; "auc_interval",
        95% (Newcombe 2006, method 5); "p_value", that of one-sided Mann-Whitney's test
        for members scoring higher; "tpr_at_fpr", the largest true positive rate in
        [0, 1] at which at most this share of the held-out images is taken for members,
        by that share ("0.001", "0.01"); "tpr_interval", 95% (Clopper-Pearson, at that
        threshold), and "tpr_p_value", the probability that a random order names as many
        members; "members" M and "non_members" N; "roc", corners of the curve: lists
        "fpr" and "tpr", ascending.

    Raises:
        ShapeError: A side is empty or not one-dimensional, or a score is NaN.
    """
    members = _checked(member_scores, "member")
    others = _checked(non_member_scores, "non-member")
    false_rates, true_rates = roc_curve(members, others)
    auc = _auc(members, others)
    hits = {
        f"{rate:g}": _hits_at(rate, false_rates, true_rates, len(members), len(others))
        for rate in FALSE_POSITIVE_RATES
    }
    return {
        "auc": auc,
        "auc_interval": list(auc_interval(auc, len(members), len(others))),
        "p_value": _p_value(members, others),
        "tpr_at_fpr": {rate: count / len(members) for rate, count in hits.items()},
        "tpr_interval": {
            rate: list(clopper_pearson(count, len(members)))
            for rate, count in hits.items()
        },
        "tpr_p_value": {
            rate: _p_value_of_hits(count, float(rate), len(members), len(others))
            for rate, count in hits.items()
        },
        "members": len(members),
        "non_members": len(others),
        "roc": _thinned(false_rates, true_rates, len(others)),
    }


def roc_curve(
    member_scores: Scores, non_member_scores: Scores
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ROC curve, one point for each distinct threshold.

    Args:
        member_scores: The scores [M] of members.
        non_member_scores: The scores [N] of images that were held out.

    Returns:
        False and true positive rates, f64[P] each, ascending from 0 to 1.

    Raises:
        ShapeError: A side is empty or not one-dimensional, or a score is NaN.
    """
    members = _checked(member_scores, "member")
    others = _checked(non_member_scores, "non-member")
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    members, others = np.sort(members), np.sort(others)
    # Scores equal to a threshold are taken for members.
    above = [len(s) - np.searchsorted(s, thresholds, "left") for s in (others, members)]
    false_rates, true_rates = above[0] / len(others), above[1] / len(members)
    return np.append(0.0, false_rates), np.append(0.0, true_rates)


def auc_interval(auc: float, members: int, non_members: int) -> tuple[float, float]:
    """Return the 95% interval of an area under the ROC curve.

    Newcombe, "Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic" (Statistics in Medicine 25, 2006, part 2), method 5: the
    areas that lie 1.96 of their own standard errors away, by Hanley and McNeil's
    formula. It stays within [0, 1] and has a width at 0 and 1 too.

    Args:
        auc: The area, in [0, 1].
        members: The number of scores of members, at least 1.
        non_members: The number of scores of others, at least 1.
    """
    # Imported here: only scoring needs it, and it takes a while.
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    others_of_a_side = (members + non_members) / 2 - 1

    def excess(area: float) -> float:
        shared = (1 - area) / (2 - area) + area / (1 + area)
        variance = area * (1 - area) * (1 + others_of_a_side * shared)
        return abs(area - auc) - z * math.sqrt(variance / (members * non_members))

    # At 0 and 1 the standard error is 0, so the search starts beside them.
    low = 0.0 if auc == 0 else float(brentq(excess, 0.0, min(auc, 1 - 1e-12)))
    high = 1.0 if auc == 1 else float(brentq(excess, max(auc, 1e-12), 1.0))
    return low, high


def _checked(scores: Scores, side: str) -> NDArray[np.float64]:
    """Return scores as f64[N].

    Raises:
        ShapeError: They are none, not one-dimensional, or NaN.
    """
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu().double().numpy()
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ShapeError(
            f"{side} scores must be one number for each of at least one image, got "
            f"shape {array.shape}"
        )
    if absent := int(np.isnan(array).sum()):
        raise ShapeError(f"{absent} of {len(array)} {side} scores are NaN")
    return array


def _auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    from sklearn.metrics import roc_auc_score

    scores = np.concatenate([members, others])
    # Ranks, because scikit-learn refuses infinite scores.
    ranks = np.unique(scores, return_inverse=True)[1]
    truth = np.arange(len(scores)) < len(members)
    return float(roc_auc_score(truth, ranks))


def _p_value(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    from scipy.stats import mannwhitneyu

    if len(np.unique(np.concatenate([members, others]))) == 1:
        return 1.0  # the test has no answer where all scores are equal
    ranks = np.unique(np.concatenate([members, others]), return_inverse=True)[1]
    split = len(members)
    return float(
        mannwhitneyu(ranks[:split], ranks[split:], alternative="greater").pvalue
    )


def _hits_at(
    rate: float,
    false_rates: NDArray[np.float64],
    true_rates: NDArray[np.float64],
    members: int,
    others: int,
) -> int:
    """Return how many members are named at a false positive rate of at most `rate`."""
    allowed = _false_positives(rate, others)
    permitted = np.rint(false_rates * others) <= allowed
    return int(np.rint(true_rates[permitted].max() * members))


def _false_positives(rate: float, others: int) -> int:
    # 0.01 x 100 images is one image, whatever rounding says.
    return math.floor(rate * others + 1e-9)


def _p_value_of_hits(hits: int, rate: float, members: int, others: int) -> float:
    """Return the probability that a random order ranks so many members that high.

    They are above all held-out images but the few that the rate allows; so of the first
    images of the order, as many as both together, no more are held-out ones.
    """
    from scipy.stats import hypergeom

    allowed = _false_positives(rate, others)
    return float(hypergeom.cdf(allowed, members + others, others, hits + allowed))


def _thinned(
    false_rates: NDArray[np.float64], true_rates: NDArray[np.float64], others: int
) -> dict[str, list[float]]:
    """Return corners of the curve, at most `MAX_CURVE_POINTS`, dense at small rates."""
    # The highest point at each false positive rate; the curve is steps in between.
    last = np.append(np.diff(false_rates) > 0, True)
    false_rates, true_rates = false_rates[last], true_rates[last]
    if len(false_rates) > MAX_CURVE_POINTS:
        rates = np.geomspace(1 / others, 1.0, MAX_CURVE_POINTS - 1)
        chosen = np.searchsorted(false_rates, np.append(0.0, rates) + 1e-12, "right")
        index = np.unique(chosen - 1)
        false_rates, true_rates = false_rates[index], true_rates[index]
    return {
        "fpr": [round(float(rate), 6) for rate in false_rates],
        "tpr": [round(float(rate), 6) for rate in true_rates],
    }
