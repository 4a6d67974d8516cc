"""The variants of a study, with all that a report says about each.

A variant is a method with one value of each setting that the method is varied along:
what is averaged over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from instahide_fl.audit.scoring.verdict import worst
from instahide_fl.report.leakage import Leakage, Spread, is_ordinary, leakages
from instahide_fl.report.results import Member, Study
from instahide_fl.report.without_folders import setting_without_folders

NOT_TRAINED = "not trained: chance"


@dataclass(frozen=True)
class Variant:
    """A method with one value of each setting that it is varied along.

    Attributes:
        method: The name of the method.
        axes: The values of the varied settings, by dotted name.
        members: The runs of the variant, one a seed.
        method_number: The position of the method among the study's methods.
        number: The position of the variant among those of its method.
        figure: The column of `Study.runs` that is reported as accuracy.
        runs: The rows of `Study.runs` that belong to the variant.
        rounds: The rows of `Study.rounds` that belong to the variant.
        attacks: The rows of `Study.attacks` that belong to the variant.
    """

    method: str
    axes: Mapping[str, Any]
    members: Sequence[Member]
    method_number: int
    number: int
    figure: str
    runs: pd.DataFrame = field(repr=False, compare=False)
    rounds: pd.DataFrame = field(repr=False, compare=False)
    attacks: pd.DataFrame = field(repr=False, compare=False)

    @property
    def label(self) -> str:
        """The variant as tables and plots name it."""
        return variant_label(self.method, self.axes)

    @property
    def short(self) -> str:
        """The values of the varied settings, or the method where there are none."""
        return ", ".join(_axis_values(self.axes)) or self.method

    @property
    def has_runs(self) -> bool:
        """Whether there is a folder of any of its runs."""
        return any(member.run is not None for member in self.members)

    @cached_property
    def accuracy(self) -> Spread | None:
        """The reported accuracy over seeds; None where no run has one."""
        return self.spread(self.figure)

    @cached_property
    def num_at_chance(self) -> int:
        """The number of its runs that learned nothing; older runs do not say."""
        if "trained" not in self.runs:
            return 0
        return int(self.runs["trained"].eq(False).sum())

    @property
    def is_ranked(self) -> bool:
        """Whether it can be compared with others: all of its runs learned something."""
        return self.num_at_chance == 0

    @property
    def marked_label(self) -> str:
        """The label, marked if the variant is not ranked."""
        return self.label if self.is_ranked else f"{self.label} ({NOT_TRAINED})"

    @cached_property
    def leakages(self) -> Sequence[Leakage]:
        """What each attack recovered of private images, worst first."""
        return leakages(self.attacks)

    @cached_property
    def verdict(self) -> str:
        """The verdict of the worst attack; empty where nothing was attacked."""
        return worst(self.attacks["verdict"]) if len(self.attacks) else ""

    def worst_leakage(self, ordinary: bool) -> Leakage | None:
        """Return the attack that recovered most; None where none recovered images.

        Args:
            ordinary: Whether only adversaries count that every federation has.
        """
        counted = (
            leakage
            for leakage in self.leakages
            if not ordinary or is_ordinary(leakage.threat_model)
        )
        return next(counted, None)

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of one of the study's frames that belong to the variant."""
        return _rows_of(self.members, frame)

    def spread(self, column: str) -> Spread | None:
        """Sum up a column of `Study.runs` over seeds; None where no run has it."""
        if column not in self.runs:
            return None
        values = self.runs[column].dropna()
        return Spread.of(list(values)) if len(values) else None


def study_variants(study: Study) -> list[Variant]:
    """Derive the variants of a study, in the order of its runs."""
    by_values: dict[tuple[Any, ...], list[Member]] = {}
    for member in study.members:
        key = (member.method, *member.axes.items())
        by_values.setdefault(key, []).append(member)
    methods = list(study.description["methods"])
    variants: list[Variant] = []
    for members in by_values.values():
        method = members[0].method
        variants.append(
            Variant(
                method=method,
                axes=members[0].axes,
                members=tuple(members),
                method_number=methods.index(method),
                number=sum(variant.method == method for variant in variants),
                figure=study.accuracy_column,
                runs=_rows_of(members, study.runs),
                rounds=_rows_of(members, study.rounds),
                attacks=_rows_of(members, study.attacks),
            )
        )
    return variants


def variant_label(method: str, axes: Mapping[str, Any]) -> str:
    """Return a method and the values of its axes, as tables and plots name them."""
    return ", ".join([method, *_axis_values(axes)])


def _axis_values(axes: Mapping[str, Any]) -> list[str]:
    return [
        f"{short_name(name)} {setting_without_folders(str(value))}"
        for name, value in axes.items()
    ]


def short_name(setting: str) -> str:
    """Return a setting's name without its table: num-mixed."""
    return setting.rpartition(".")[2]


def _rows_of(members: Sequence[Member], frame: pd.DataFrame) -> pd.DataFrame:
    if frame.empty:
        return frame
    return frame[frame["name"].isin([member.name for member in members])]
