"""Confidence intervals of shares and of means."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from torch import Tensor

Interval: TypeAlias = tuple[float, float]
"""The lower and the upper end."""

CONFIDENCE = 0.95
RESAMPLES = 1000
MAX_RESAMPLED = 2000  # values; means of more are normally distributed


def clopper_pearson(hits: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the exact interval of a probability (Clopper and Pearson 1934).

    Args:
        hits: The number of successes, 0..count.
        count: The number of independent trials, at least one.
        confidence: The probability that the interval covers the truth, at least.

    Returns:
        Two shares in [0, 1].
    """
    # Imported here: only scoring needs it, and it takes a while.
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


def bootstrap_interval(values: Tensor) -> Interval:
    """Return the 95% interval of the mean of independent values.

    The percentile bootstrap (Efron 1979) with 1,000 resamples, drawn in the same way
    each time; for more than 2,000 values the normal approximation, which they reach.

    Args:
        values: f64[n], at least one value. A single value has an interval of length 0:
            it says nothing about others.
    """
    numbers = values.double().numpy()
    tail = (1 - CONFIDENCE) / 2
    if len(numbers) > MAX_RESAMPLED:
        error = 1.96 * float(numbers.std(ddof=1)) / len(numbers) ** 0.5
        return float(numbers.mean()) - error, float(numbers.mean()) + error
    # Seeded here: an interval must not depend on what else was drawn.
    rows = np.random.default_rng(0).integers(
        len(numbers), size=(RESAMPLES, len(numbers))
    )
    low, high = np.quantile(numbers[rows].mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)
