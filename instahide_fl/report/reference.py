"""Accuracy as a share of that of the method that hides and defends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instahide_fl.config import Config
from instahide_fl.report.leakage import Spread
from instahide_fl.report.results import Study
from instahide_fl.report.variants import Variant


@dataclass(frozen=True)
class Reference:
    """The method that accuracy is compared with.

    Attributes:
        method: The name of the method.
        variants: Its variants that are ranked and have an accuracy.
    """

    method: str
    variants: Sequence[Variant]

    @property
    def only_accuracy(self) -> float | None:
        """The accuracy that all are compared with; None if there are several."""
        if len(self.variants) != 1:
            return None
        return self._accuracy_for(self.variants[0])

    def relative(self, variant: Variant) -> Spread | None:
        """Return a variant's accuracy over that of the reference.

        The mean of the reference over seeds divides both mean and deviation.

        Args:
            variant: The variant. Of a reference that is varied too, the variant with
                the same values counts.

        Returns:
            The ratio, 1 where nothing is lost; None where either has no accuracy.
        """
        reference = self._accuracy_for(variant)
        if variant.accuracy is None or not reference:
            return None
        deviation = variant.accuracy.deviation
        return Spread(
            mean=variant.accuracy.mean / reference,
            deviation=None if deviation is None else deviation / reference,
            count=variant.accuracy.count,
        )

    def _accuracy_for(self, variant: Variant) -> float | None:
        alike = [
            candidate.accuracy.mean
            for candidate in self.variants
            if candidate.accuracy
            and all(
                variant.axes.get(name, value) == value
                for name, value in candidate.axes.items()
            )
        ]
        return alike[0] if len(alike) == 1 else None


def find_reference(study: Study, variants: Sequence[Variant]) -> Reference | None:
    """Find the reference: the study's own, or the first method that changes nothing.

    Args:
        study: The study.
        variants: Its variants.

    Returns:
        The reference; None where there is none that has learned something, or nothing
        to compare with it.
    """
    method = study.description.get("reference") or _first_undefended(variants)
    usable = [
        variant
        for variant in variants
        if variant.method == method and variant.is_ranked and variant.accuracy
    ]
    if not usable or len({variant.method for variant in variants}) < 2:
        return None
    return Reference(method, tuple(usable))


def _first_undefended(variants: Sequence[Variant]) -> str:
    for variant in variants:
        runs = [member.run for member in variant.members if member.run]
        if runs and _changes_nothing(runs[0].config):
            return variant.method
    return ""


def _changes_nothing(config: Config) -> bool:
    return config.instahide.method == "none" and config.defense.description == "none"
