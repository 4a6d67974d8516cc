"""What attacks recovered, summed up over seeds.

Of several attacks the one that recovered most counts. One that also fails where nothing
is hidden counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from instahide_fl.audit.scoring.verdict import NO_VERDICT
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
    """

    audit: str
    attack: str
    threat_model: str
    similarity: Spread
    best: float
    share: Spread
    baseline: Spread

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
        )
        for (audit, attack, threat_model), rows in usable.groupby(
            ATTACK_KEYS, sort=False
        )
    ]
    return sorted(by_attack, key=lambda leakage: -leakage.similarity.mean)


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
