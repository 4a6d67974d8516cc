"""What a study's attacks took back, method by method.

A method with its values of the axes is called a variant here: what is averaged over
seeds. Of several attacks the one that got most counts; one that also fails where
nothing is hidden counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from instahide_fl.audit.scoring.verdict import NO_VERDICT, worst
from instahide_fl.report.results import Member, Study
from instahide_fl.transcript.threat_model import THREAT_MODELS

ATTACK_KEYS = ["audit", "attack", "threat_model"]


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: over seeds.
        deviation: standard deviation between seeds (n - 1); None of a single one.
        count: of seeds.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up at least one value."""
        series = pd.Series(values, dtype=float)
        deviation = float(series.std()) if len(series) > 1 else None
        return cls(float(series.mean()), deviation, len(series))

    @property
    def error(self) -> float:
        """The deviation, 0 where it is not known: the length of an error bar."""
        return self.deviation or 0.0


@dataclass(frozen=True)
class Variant:
    """A method, with one value of each axis that it varies along.

    Attributes:
        method: by name.
        axes: values by setting.
        members: its runs, one a seed.
    """

    method: str
    axes: Mapping[str, Any]
    members: Sequence[Member]

    @property
    def label(self) -> str:
        """As it stands in tables and plots."""
        return ", ".join([self.method, *self._values()])

    @property
    def short(self) -> str:
        """Its values of the axes, or the method where there are none."""
        return ", ".join(self._values()) or self.method

    def _values(self) -> list[str]:
        return [f"{short_name(name)} {value}" for name, value in self.axes.items()]

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return its runs' rows of one of the study's frames."""
        if frame.empty:
            return frame
        return frame[frame["name"].isin([one.name for one in self.members])]

    def spread(self, frame: pd.DataFrame, column: str) -> Spread | None:
        """Sum up a column of `Study.runs` over seeds; None where no run has it."""
        if column not in frame:
            return None
        known = self.rows(frame)[column].dropna()
        return Spread.of(list(known)) if len(known) else None


@dataclass(frozen=True)
class Leakage:
    """What one attack got from a variant, over seeds.

    Attributes:
        audit, attack, threat_model: which one.
        similarity: mean SSIM with private images, of each seed.
        best: SSIM of the one image that it got best, of all seeds.
        share: of images above SSIM 0.5, of each seed.
        baseline: SSIM of a guess without information, of each seed.
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
        """Which attack it was, in words."""
        return f"{self.attack}: {self.audit}" if self.audit else self.attack


def short_name(setting: str) -> str:
    """Return a setting without its table: num-mixed."""
    return setting.rpartition(".")[2]


def variants(study: Study) -> list[Variant]:
    """Return a study's variants in the order of its runs."""
    found: dict[tuple[Any, ...], list[Member]] = {}
    for one in study.members:
        found.setdefault((one.method, *one.axes.items()), []).append(one)
    return [
        Variant(members[0].method, members[0].axes, tuple(members))
        for members in found.values()
    ]


def is_ordinary(threat_model: str) -> bool:
    """Tell whether somebody in every federation is in this position.

    One that this version does not know is taken for ordinary.
    """
    known = THREAT_MODELS.get(threat_model)
    return known is None or known.ordinary


def leakages(variant: Variant, attacks: pd.DataFrame) -> list[Leakage]:
    """Return what attacks on private images got, worst first.

    Args:
        variant: of the study.
        attacks: `Study.attacks`.
    """
    rows = variant.rows(attacks)
    if rows.empty or "private_ssim_mean" not in rows:
        return []
    rows = rows[(rows["verdict"] != NO_VERDICT) & rows["private_ssim_mean"].notna()]
    found = [
        Leakage(
            *(audit, attack, threat_model),
            Spread.of(list(one["private_ssim_mean"])),
            float(one["private_ssim_best"].max()),
            Spread.of(list(one["private_share_above_0.5"])),
            Spread.of(list(one["baseline_ssim"])),
        )
        for (audit, attack, threat_model), one in rows.groupby(ATTACK_KEYS, sort=False)
    ]
    return sorted(found, key=lambda one: -one.similarity.mean)


def worst_leakage(
    variant: Variant, attacks: pd.DataFrame, ordinary: bool
) -> Leakage | None:
    """Return the attack that got most; None where none gave images.

    Args:
        variant: of the study.
        attacks: `Study.attacks`.
        ordinary: whether only adversaries count that every federation has.
    """
    found = [
        one
        for one in leakages(variant, attacks)
        if not ordinary or is_ordinary(one.threat_model)
    ]
    return found[0] if found else None


def worst_verdict(variant: Variant, attacks: pd.DataFrame) -> str:
    """Return the verdict of the worst attack; empty where nothing was attacked."""
    rows = variant.rows(attacks)
    return worst(rows["verdict"]) if len(rows) else ""


def dominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell which points another one beats.

    Args:
        points: accuracy (more is better) and leakage (less is better) of each.

    Returns:
        True where another point is at least as good in both and better in one.
    """
    return [
        any(
            other[0] >= one[0] and other[1] <= one[1] and other != one
            for other in points
        )
        for one in points
    ]
