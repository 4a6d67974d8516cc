"""From figures to a verdict. There is none that says "secure".

The constants here are conventions. They are chosen so that noise is not called a leak,
with one image as with many, and a recognisable copy is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from instahide_fl.audit.scoring.attack_scores import (
    AttackScores,
    IdentificationScores,
    ImageSimilarity,
)
from instahide_fl.audit.scoring.statistics_scores import StatisticsErrors
from instahide_fl.errors import AttackError
from instahide_fl.metrics.labels import HardLabels, SoftLabels
from instahide_fl.metrics.scores import RECOGNISABLE, SsimScores, Summary
from instahide_fl.transcript.threat_model import Knowledge, ThreatModel

LEAKS = "leaks"
LEAKS_TO_ADVERSARY = "leaks to this adversary"
NO_VERDICT = "no verdict: this attack also fails where nothing is hidden"
NO_LEAK = "no leak found by this attack (not a proof)"
NOT_SCORED = "not scored: the truth is not known"
FROM_WORST = (LEAKS, LEAKS_TO_ADVERSARY, NO_VERDICT, NOT_SCORED, NO_LEAK)

MEAN_MARGIN = 0.1
"""SSIM by which the mean exceeds every baseline, at least."""
STANDARD_ERRORS = 3.0
"""Standard errors of a drawn baseline, over as many images, by which the mean exceeds
it, at least."""
BEST_MARGIN = 0.2
"""SSIM by which the best image exceeds the best of every baseline, at least."""
SHARE_MARGIN = 0.1
"""Share of hits (nearest neighbours, classes) above chance, at least."""
SIGNIFICANCE = 0.001
"""Probability of as many hits, or images above 0.5, by chance, at most."""
SOFT_LABEL_FRACTION = 0.2
"""Mean error of soft labels, as a share of that of an even guess, at most."""
STATISTICS_FRACTION = 0.2
"""Mean error of statistics of private batches, as a share of that of an uninformed
guess, at most."""


def beats_baseline(scores: AttackScores, labels: bool = True) -> bool:
    """Tell whether an attack got private images, labels or keys better than by chance.

    An encoding recovered does not count by itself: only what it shows of the private
    images in it does. A key counts by itself, and so do the public images in it.
    So do statistics of batches of private images, and knowing who was trained on.

    Args:
        scores: The scores of the attack.
        labels: Whether labels count; not where the adversary was given them.
    """
    images = scores.private is not None and (
        similarity_beats(scores.private) or folded_beats(scores.private)
    )
    identified = (scores.identified is not None and _identifies(scores.identified)) or (
        scores.candidates is not None and scores.candidates.decisive.beats_chance
    )
    keys = scores.keys is not None and scores.keys.correct > 0
    public = any(ranking.beats_chance for ranking in scores.components.values())
    statistics = _statistics_beat(scores.statistics)
    membership = scores.membership is not None and scores.membership.beats_chance
    return (
        images
        or identified
        or keys
        or public
        or statistics
        or membership
        or (labels and _labels_beat(scores))
    )


def similarity_beats(similarity: ImageSimilarity) -> bool:
    """Tell whether images resemble their truth more than all baselines do.

    Either on average, or one of them clearly, or more of them above 0.5 than chance
    explains. SSIM in the better sign is what counts.

    Args:
        similarity: To private images; or to encodings, to say whether they were
            recovered.
    """
    return _ssim_beats(
        similarity.attack.in_better_sign,
        {name: scores.in_better_sign for name, scores in similarity.baselines.items()},
    )


def folded_beats(similarity: ImageSimilarity) -> bool:
    """Tell whether images resemble their truth more than all baselines, without signs.

    What is asked for is the same as in `similarity_beats`, of folded SSIM.

    Args:
        similarity: To private images; or to encodings, to say whether they were
            recovered up to their signs.
    """
    folded = similarity.folded
    return folded is not None and _ssim_beats(folded.attack, folded.baselines)


def _ssim_beats(attack: SsimScores, baselines: Mapping[str, SsimScores]) -> bool:
    best = max(scores.ssim.best for scores in baselines.values()) + BEST_MARGIN
    return (
        all(
            attack.ssim.mean
            > scores.ssim.mean
            + _margin(scores.ssim, attack.count, drawn=name != "no_information")
            for name, scores in baselines.items()
        )
        or attack.ssim.best > max(RECOGNISABLE, best)
        or _more_above_half(attack, baselines)
    )


def _margin(baseline: Summary, count: int, drawn: bool) -> float:
    """Return what the mean of `count` images must exceed a baseline's mean by.

    A guess is the same image for all victims: nothing is drawn that could be lucky.
    """
    error = STANDARD_ERRORS * baseline.spread / math.sqrt(count) if drawn else 0.0
    return max(MEAN_MARGIN, error)


def _more_above_half(attack: SsimScores, baselines: Mapping[str, SsimScores]) -> bool:
    # One image is added to each baseline: none above 0.5 is no proof of a share of 0.
    rates = [
        (baseline.above_half + 1) / (baseline.count + 1)
        for baseline in baselines.values()
    ]
    by_chance = _by_chance(attack.above_half, attack.count, max(rates))
    return by_chance <= SIGNIFICANCE


def verdict(
    threat_model: ThreatModel,
    scores: AttackScores,
    undefended: AttackScores | None = None,
) -> str:
    """Put scores into words.

    Args:
        threat_model: The adversary.
        scores: The scores of the attack on the run.
        undefended: The scores of the same attack on the undefended reference, which
            hides nothing; None if it was not run. A leak is a leak whatever these say.
            An attack that fails on the reference too has shown nothing.

    Returns:
        One of `FROM_WORST`.
    """
    labels = Knowledge.LABELS not in threat_model.knows
    if beats_baseline(scores, labels):
        return LEAKS if threat_model.ordinary else LEAKS_TO_ADVERSARY
    if undefended is not None and not beats_baseline(undefended, labels):
        return NO_VERDICT
    return NO_LEAK


def worst(verdicts: Iterable[str]) -> str:
    """Return the verdict on a method: that of its worst row.

    An attack that gave no verdict is worse than one that found nothing: what it would
    have found is unknown.

    Raises:
        AttackError: there is no verdict to choose from.
    """
    verdicts = list(verdicts)
    if not verdicts:
        raise AttackError("a method without any attack has no verdict: run one")
    return min(verdicts, key=FROM_WORST.index)


def _identifies(identified: IdentificationScores) -> bool:
    attack, chance = identified.attack, identified.chance
    if not attack.count or attack.precision < chance + SHARE_MARGIN:
        return False
    return _by_chance(attack.hits, attack.count, chance) <= SIGNIFICANCE


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


def _labels_beat(scores: AttackScores) -> bool:
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
