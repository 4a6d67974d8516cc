"""What attacks recovered, summed up over seeds.

Of several attacks the one that recovered most counts. One that also fails where nothing
is hidden counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from instahide_fl.audit.scoring.verdict import NO_VERDICT
from instahide_fl.metrics.intervals import CONFIDENCE, RESAMPLES, Interval
from instahide_fl.report.attack_rows import attack_title
from instahide_fl.transcript.threat_model import THREAT_MODELS

ATTACK_KEYS = ["audit", "attack", "threat_model"]
"""The columns of `Study.attacks` that tell an attack from others."""


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds.

    Attributes:
        mean: The mean over seeds.
        deviation: The standard deviation between seeds (n - 1); None for a single seed.
        count: The number of seeds.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up the values of the seeds, at least one."""
        series = pd.Series(values, dtype=float)
        deviation = float(series.std()) if len(series) > 1 else None
        return cls(float(series.mean()), deviation, len(series))

    @property
    def error(self) -> float:
        """The length of an error bar: the deviation, 0 where there is none."""
        return self.deviation or 0.0


@dataclass(frozen=True)
class Leakage:
    """What one attack recovered of a variant's private images, over seeds.

    Attributes:
        audit: The audit that it belongs to; empty for the run itself.
        attack: The name of the attack.
        threat_model: The adversary that the attack was run as.
        similarity: The mean SSIM with private images, of each seed.
        best: The SSIM of the best-recovered image of all seeds.
        share: The share of images above SSIM 0.5, of each seed.
        baseline: The SSIM of a guess without information, of each seed.
        best_baseline: The SSIM of the best of all baselines, of each seed: the attack
            has to exceed it.
        interval: The 95% interval of the mean similarity.
        images: The number of images of all seeds.
    """

    audit: str
    attack: str
    threat_model: str
    similarity: Spread
    best: float
    share: Spread
    baseline: Spread
    best_baseline: Spread
    interval: Interval | None
    images: int

    @property
    def source(self) -> str:
        """The attack in words."""
        return attack_title(self.attack, self.audit)


def leakages(attacks: pd.DataFrame) -> list[Leakage]:
    """Return what each attack recovered of private images, worst first.

    Args:
        attacks: The rows of `Study.attacks` that belong to one variant.
    """
    if attacks.empty or "private_ssim_mean" not in attacks:
        return []
    usable = images_recovered(attacks)
    by_attack = [
        Leakage(
            audit=audit,
            attack=attack,
            threat_model=threat_model,
            similarity=Spread.of(list(rows["private_ssim_mean"])),
            best=float(rows["private_ssim_best"].max()),
            share=Spread.of(list(rows["private_share_above_0.5"])),
            baseline=Spread.of(list(rows["baseline_ssim"])),
            best_baseline=Spread.of(list(rows["best_baseline_ssim"])),
            interval=mean_interval(rows, "private_ssim", "private_images"),
            images=int(rows["private_images"].sum()),
        )
        for (audit, attack, threat_model), rows in usable.groupby(
            ATTACK_KEYS, sort=False
        )
    ]
    return sorted(by_attack, key=lambda leakage: -leakage.similarity.mean)


def mean_interval(attacks: pd.DataFrame, figure: str, images: str) -> Interval | None:
    """Return the 95% interval of a mean over images and seeds.

    Of one seed it is the attack's own. Of several it is a bootstrap over seeds, in each
    of which the mean over images is drawn anew with its standard error.

    Args:
        attacks: The rows of one attack, one a seed.
        figure: The columns' name without "_mean" and so on.
        images: The column with the number of images.

    Returns:
        The ends; None where no row has the figure.
    """
    if f"{figure}_mean" not in attacks:
        return None
    rows = attacks[attacks[f"{figure}_mean"].notna()]
    if rows.empty:
        return None
    if len(rows) == 1 and pd.notna(low := rows.iloc[0].get(f"{figure}_low")):
        return float(low), float(rows.iloc[0][f"{figure}_high"])
    means = rows[f"{figure}_mean"].to_numpy(float)
    errors = rows[f"{figure}_spread"].to_numpy(float) / np.sqrt(
        rows[images].to_numpy(float)
    )
    rng = np.random.default_rng(0)  # the same interval each time
    seeds = rng.integers(len(rows), size=(RESAMPLES, len(rows)))
    drawn = means[seeds] + errors[seeds] * rng.standard_normal(seeds.shape)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn.mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)


def images_recovered(attacks: pd.DataFrame) -> pd.DataFrame:
    """Return the attacks that recovered private images and have a verdict.

    An attack that fails on the undefended reference too has none.

    Args:
        attacks: The rows of `Study.attacks`, with the column private_ssim_mean.
    """
    judged = attacks["verdict"] != NO_VERDICT
    return attacks[judged & attacks["private_ssim_mean"].notna()]


def is_ordinary(threat_model: str) -> bool:
    """Tell whether every federation has somebody in this adversary's position.

    An adversary that this version does not know is taken for an ordinary one.
    """
    model = THREAT_MODELS.get(threat_model)
    return model is None or model.ordinary


def dominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell which points another one beats.

    Args:
        points: The accuracy (more is better) and leakage (less is better) of each.

    Returns:
        True where another point is at least as good in both and better in one.
    """
    return [
        any(
            other[0] >= point[0] and other[1] <= point[1] and other != point
            for other in points
        )
        for point in points
    ]
