"""From figures to a verdict. There is none that says "secure".

The constants here are conventions. They are chosen so that noise is not called a leak,
with one image as with many, and a recognisable copy is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from instahide_fl.audit.scoring.attack_scores import Column, Identified, Scores
from instahide_fl.audit.scoring.statistics_scores import StatisticsErrors
from instahide_fl.errors import AttackError
from instahide_fl.metrics.labels import HardLabels, SoftLabels
from instahide_fl.metrics.scores import RECOGNISABLE, ImageScores, Summary
from instahide_fl.transcript.threat_model import Knowledge, ThreatModel

LEAKS = "leaks"
LEAKS_TO_ADVERSARY = "leaks to this adversary"
NO_VERDICT = "no verdict: this attack also fails where nothing is hidden"
NO_LEAK = "no leak found by this attack (not a proof)"
NOT_SCORED = "not scored: the truth is not known"
FROM_WORST = (LEAKS, LEAKS_TO_ADVERSARY, NO_VERDICT, NOT_SCORED, NO_LEAK)

MEAN_MARGIN = 0.1
"""SSIM by which the mean exceeds both baselines, at least."""
STANDARD_ERRORS = 3.0
"""Of a drawn baseline's mean over as many images, which the mean exceeds it by too."""
BEST_MARGIN = 0.2
"""SSIM by which the best image exceeds the best of both baselines."""
SHARE_MARGIN = 0.1
"""Share of hits (nearest neighbours, classes) above chance, at least."""
SIGNIFICANCE = 0.001
"""Probability of as many hits, or images above 0.5, by chance, at most."""
SOFT_LABEL_FRACTION = 0.2
"""Mean error of soft labels, of that of an even guess, at most."""
STATISTICS_FRACTION = 0.2
"""Mean error of statistics of private batches, of that of an uninformed guess."""


def beats_baseline(scores: Scores, labels: bool = True) -> bool:
    """Tell whether an attack got private images, labels or keys better than by chance.

    An encoding recovered does not count by itself: only what it shows of the private
    images in it does. A key counts by itself, and so do the public images in it.
    So do statistics of batches of private images.

    Args:
        scores: of the attack.
        labels: whether labels count; not where the adversary was given them.
    """
    images = scores.private is not None and column_beats(scores.private)
    named = scores.identified is not None and _identifies(scores.identified)
    keys = scores.keys is not None and scores.keys.found > 0
    public = any(one.beats_chance for one in scores.components.values())
    measured = _statistics_beat(scores.statistics)
    found = images or named or keys or public or measured
    return found or (labels and _labels_beat(scores))


def column_beats(column: Column) -> bool:
    """Tell whether images resemble their truth more than all baselines do.

    Either on average, or one of them clearly, or more of them above 0.5 than chance
    explains. SSIM in the better sign is what counts.

    Args:
        column: of private images; of encodings, to say whether those were recovered.
    """
    attack, count = column.attack.sign_ssim, column.attack.count
    baselines = {name: one.sign_ssim for name, one in column.baselines.items()}
    best = max(one.best for one in baselines.values()) + BEST_MARGIN
    return (
        all(
            attack.mean > one.mean + _margin(one, count, drawn=name != "no_information")
            for name, one in baselines.items()
        )
        or attack.best > max(RECOGNISABLE, best)
        or _more_above_half(column)
    )


def _margin(baseline: Summary, count: int, drawn: bool) -> float:
    """Return what the mean of `count` images must exceed a baseline's mean by.

    A guess is the same image for all victims: nothing is drawn that could be lucky.
    """
    error = STANDARD_ERRORS * baseline.spread / math.sqrt(count) if drawn else 0.0
    return max(MEAN_MARGIN, error)


def _more_above_half(column: Column) -> bool:
    # One image is added to each baseline: none above 0.5 is no proof of a share of 0.
    rates = [
        (_above_half(baseline) + 1) / (baseline.count + 1)
        for baseline in column.baselines.values()
    ]
    hits = _above_half(column.attack)
    return _by_chance(hits, column.attack.count, max(rates)) <= SIGNIFICANCE


def _above_half(scores: ImageScores) -> int:
    return round((scores.sign_ssim.share_above_half or 0.0) * scores.count)


def verdict(
    threat_model: ThreatModel, scores: Scores, control: Scores | None = None
) -> str:
    """Put scores into words.

    Args:
        threat_model: of the adversary.
        scores: of the attack on the run.
        control: of the same attack on a run that hides nothing; None for none. A leak
            is a leak whatever the control says; without one, an attack that fails on
            the control too has shown nothing.

    Returns:
        one of `FROM_WORST`.
    """
    labels = Knowledge.LABELS not in threat_model.knows
    if beats_baseline(scores, labels):
        return LEAKS if threat_model.ordinary else LEAKS_TO_ADVERSARY
    if control is not None and not beats_baseline(control, labels):
        return NO_VERDICT
    return NO_LEAK


def worst(verdicts: Iterable[str]) -> str:
    """Return the verdict on a method: that of its worst row.

    An attack that gave no verdict is worse than one that found nothing: what it would
    have found is unknown.

    Raises:
        AttackError: there is no verdict to choose from.
    """
    every = list(verdicts)
    if not every:
        raise AttackError("a method without any attack has no verdict: run one")
    return min(every, key=FROM_WORST.index)


def _identifies(identified: Identified) -> bool:
    found, chance = identified.attack, identified.chance
    if not found.count or found.precision < chance + SHARE_MARGIN:
        return False
    return _by_chance(found.hits, found.count, chance) <= SIGNIFICANCE


def _by_chance(hits: int, count: int, chance: float) -> float:
    """Return the probability of at least so many hits."""
    # Imported here: only verdicts need it, and it takes a while.
    from scipy.stats import binom

    return float(binom.sf(hits - 1, count, chance))


def _statistics_beat(statistics: StatisticsErrors | str | None) -> bool:
    if statistics is None or isinstance(statistics, str):
        return False
    limit = STATISTICS_FRACTION * float(statistics.uninformed.mean())
    return float(statistics.private.mean()) <= limit


def _labels_beat(scores: Scores) -> bool:
    hard, soft = scores.hard_labels, scores.soft_labels
    return (hard is not None and _names_classes(hard)) or (
        soft is not None and _names_weights(soft)
    )


def _names_classes(hard: HardLabels) -> bool:
    margin = hard.overlap >= hard.chance + SHARE_MARGIN
    return margin and hard.p_value <= SIGNIFICANCE


def _names_weights(soft: SoftLabels) -> bool:
    limit = SOFT_LABEL_FRACTION * float(soft.uninformed.mean())
    return float(soft.errors.mean()) <= limit
