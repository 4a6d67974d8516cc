"""Figures of a study: accuracy against leakage, curves, and what varied settings do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from instahide_fl.report.drawing import (
    COLOURS,
    FAINT,
    LINES,
    MARKERS,
    Drawing,
    legend_below,
    panels,
    tip,
)
from instahide_fl.report.leakage import Leakage, Spread, dominated
from instahide_fl.report.reference import Reference
from instahide_fl.report.results import Study
from instahide_fl.report.variants import NOT_TRAINED, Variant, short_name
from instahide_fl.report.without_folders import setting_without_folders

LEAKAGE = "SSIM with private images"
ACCURACY = "accuracy on clean test images"
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g}%")
MAX_CURVES = 8  # in one plot
UNRANKED_MARKER = "x"
ORDINARY = "adversaries that every federation has"
EVERYBODY = "all adversaries, also those with more power or knowledge"

Series: TypeAlias = tuple[str, bool, tuple[tuple[str, Any], ...]]
"""A line of a plot against one setting: its method, whether the method varies with that
setting, and the values of the other settings."""


def colour_of(variant: Variant) -> str:
    """Return the colour of a variant's method: the same in all figures."""
    return COLOURS[variant.method_number % len(COLOURS)]


def marker_of(variant: Variant) -> str:
    """Return the marker of a variant's method: the same in all figures."""
    return MARKERS[variant.method_number % len(MARKERS)]


def line_of(variant: Variant) -> Any:
    """Return the kind of line that tells a method's variants apart."""
    return LINES[variant.number % len(LINES)]


@dataclass(frozen=True)
class _Point:
    """A variant in a plot of accuracy against leakage.

    Attributes:
        variant: The variant.
        accuracy: The accuracy over seeds.
        leakage: What the attack that recovered most recovered.
    """

    variant: Variant
    accuracy: Spread
    leakage: Leakage

    @property
    def means(self) -> tuple[float, float]:
        """The mean accuracy and the mean leakage."""
        return self.accuracy.mean, self.leakage.similarity.mean


def trade_off(
    variants: Sequence[Variant], *, ordinary: bool, reference: Reference | None
) -> Drawing | None:
    """Draw accuracy against leakage; None with nothing to draw.

    Args:
        variants: The variants of the study.
        ordinary: Whether only adversaries count that every federation has.
        reference: The method that accuracy is compared with; None compares with none.
    """
    points = [
        _Point(variant, variant.accuracy, leakage)
        for variant in variants
        if variant.accuracy and (leakage := variant.worst_leakage(ordinary))
    ]
    if not points:
        return None
    ranked = [point for point in points if point.variant.is_ranked]
    beaten = dict(
        zip(
            [point.variant.label for point in ranked],
            dominated([point.means for point in ranked]),
            strict=True,
        )
    )
    with panels(1, 6.6, 4.6) as (figure, (axes,)):
        unbeaten = [point.means for point in ranked if not beaten[point.variant.label]]
        _draw_frontier(axes, unbeaten)
        labelled: set[str] = set()
        for point in points:
            _draw_point(axes, point, beaten.get(point.variant.label, False))
            _draw_point_label(axes, point, in_legend=point.variant.method in labelled)
            labelled.add(point.variant.method)
        guess = max(point.leakage.baseline.mean for point in points)
        axes.axvspan(0, guess, color=FAINT, alpha=0.12, lw=0, label="a guess reaches")
        axes.set(xlabel=f"leakage: {LEAKAGE}", ylabel=ACCURACY, xlim=(0, 1.08))
        axes.yaxis.set_major_formatter(PERCENT)
        if reference is not None:
            _draw_relative_axis(axes, reference)
        legend_below(figure, [axes])
    in_words = "; ".join(
        f"{point.variant.marked_label}: accuracy {point.accuracy.mean:.1%}"
        f"{_relative_in_words(point.variant, reference)}, "
        f"leakage {point.leakage.similarity.mean:.2f}"
        for point in points
    )
    return Drawing(
        "trade-off" if ordinary else "trade-off-all-adversaries",
        f"Accuracy against leakage: {ORDINARY if ordinary else EVERYBODY}",
        "Better is up and to the left. Each point is the attack that got most from a "
        "method. Error bars: standard deviation over seeds. Hollow grey points are "
        "dominated: by their means another method is at least as good in both, though "
        f"error bars may overlap.{_unranked_note(variants)}",
        f"Accuracy against leakage. {in_words}.",
        figure,
    )


def _draw_relative_axis(axes: Axes, reference: Reference) -> None:
    """Draw a second axis on the right: accuracy as a share of the reference's."""
    accuracy = reference.only_accuracy
    if accuracy is None:
        return
    scales = (lambda value: value / accuracy, lambda share: share * accuracy)
    right = axes.secondary_yaxis("right", functions=scales)
    right.set_ylabel(f"as a share of the accuracy of {reference.method}")
    right.yaxis.set_major_formatter(PERCENT)
    axes.axhline(accuracy, color=FAINT, lw=0.8, ls="--", zorder=1)


def _relative_in_words(variant: Variant, reference: Reference | None) -> str:
    relative = reference.relative(variant) if reference else None
    if reference is None or relative is None or variant.method == reference.method:
        return ""
    return f" ({relative.mean:.0%} of {reference.method})"


def _unranked_note(variants: Sequence[Variant]) -> str:
    """Name the methods at chance, which have no place in a comparison."""
    names = [variant.label for variant in variants if not variant.is_ranked]
    if not names:
        return ""
    return f" Not ranked ({NOT_TRAINED}): {'; '.join(names)}."


def _draw_frontier(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    if not points:
        return
    ordered = sorted((leakage, accuracy) for accuracy, leakage in points)
    axes.step(
        *zip(*ordered, strict=True), where="post", color=FAINT, lw=1, ls=":", zorder=1
    )


def _draw_point(axes: Axes, point: _Point, is_beaten: bool) -> None:
    variant, leakage = point.variant, point.leakage
    colour = FAINT if is_beaten else colour_of(variant)
    y, x = point.means
    y_error, x_error = point.accuracy.error, leakage.similarity.error
    if x_error or y_error:
        axes.errorbar(x, y, y_error, x_error, color=colour, lw=1, capsize=2, zorder=2)
    (dot,) = axes.plot(
        x,
        y,
        marker_of(variant) if variant.is_ranked else UNRANKED_MARKER,
        ms=8,
        mfc="none" if is_beaten else colour,
        mec=colour,
        zorder=3,
    )
    tip(
        dot,
        f"{variant.marked_label}: accuracy {y:.1%}, SSIM {x:.2f} ({leakage.source})",
    )


def _draw_point_label(axes: Axes, point: _Point, in_legend: bool) -> None:
    """Name the method in the legend, once, and the values of its settings beside it."""
    variant = point.variant
    # Of a method with several variants, some may be at chance and others not.
    is_cross = not (variant.is_ranked or variant.axes)
    if not in_legend:
        axes.plot(
            [],
            [],
            UNRANKED_MARKER if is_cross else marker_of(variant),
            ms=7,
            color=colour_of(variant),
            label=variant.marked_label if is_cross else variant.method,
        )
    if variant.axes:
        accuracy, leakage = point.means
        axes.annotate(
            ", ".join(map(_as_label, variant.axes.values())),
            (leakage, accuracy),
            xytext=(7, 5),
            textcoords="offset points",
            fontsize=8,
        )


def curves(study: Study, variants: Sequence[Variant]) -> Drawing | None:
    """Draw accuracy over rounds, with bands over seeds; None of fewer than two."""
    tested = (
        study.rounds.dropna(subset=["test_accuracy"]) if len(study.rounds) else None
    )
    if tested is None or tested["round"].nunique() < 2:
        return None
    trained = [variant for variant in variants if len(variant.rounds)]
    if len(trained) <= MAX_CURVES:
        figure = _curves_in_one_plot(trained)
    else:
        figure = _curves_by_method(trained)
    ends = "; ".join(
        f"{variant.marked_label} ends at {end.mean:.1%}"
        for variant in trained
        if (end := variant.spread("final_accuracy"))
    )
    return Drawing(
        "accuracy-by-round",
        "Accuracy over training",
        "Mean over seeds; bands: standard deviation between seeds.",
        f"Accuracy by round. {ends}.",
        figure,
    )


def _curves_in_one_plot(variants: Sequence[Variant]) -> Figure:
    with panels(1, 6.6, 4.2) as (figure, cells):
        labelled = [(variant.marked_label, variant) for variant in variants]
        _draw_curves(cells[0], labelled, "")
        legend_below(figure, cells)
    return figure


def _curves_by_method(variants: Sequence[Variant]) -> Figure:
    methods = list(dict.fromkeys(variant.method for variant in variants))
    with panels(len(methods), 4.4, 3.2) as (figure, cells):
        for axes, method in zip(cells, methods, strict=True):
            labelled = [
                (_short_label(variant), variant)
                for variant in variants
                if variant.method == method
            ]
            _draw_curves(axes, labelled, method)
            axes.legend(loc="lower right")
    return figure


def _short_label(variant: Variant) -> str:
    if variant.is_ranked:
        return variant.short
    return f"{variant.short} ({NOT_TRAINED})"


def _draw_curves(
    axes: Axes, labelled: Sequence[tuple[str, Variant]], title: str
) -> None:
    """Draw the curves of variants, each with its label."""
    for label, variant in labelled:
        _draw_curve(axes, variant, label)
    axes.set(xlabel="round", ylabel=ACCURACY, title=title)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _draw_curve(axes: Axes, variant: Variant, label: str) -> None:
    tested = variant.rounds.dropna(subset=["test_accuracy"])
    by_round = tested.groupby("round")["test_accuracy"]
    mean, deviation = by_round.mean(), by_round.std().fillna(0.0)
    colour, line = colour_of(variant), line_of(variant)
    marker = "o" if len(mean) < 3 else ""
    axes.plot(mean.index, mean, color=colour, ls=line, label=label, marker=marker)
    if deviation.any():
        low, high = mean - deviation, mean + deviation
        axes.fill_between(mean.index, low, high, color=colour, alpha=0.15, lw=0)


def sweeps(study: Study, variants: Sequence[Variant]) -> Iterator[Drawing]:
    """Draw accuracy and leakage against each setting that is varied."""
    for setting in study.axes:
        if any(setting in variant.axes for variant in variants):
            values = study.description["axes"][setting]
            series = _by_series(variants, setting)
            yield _sweep(setting, values, series, _unranked_note(variants))


def _sweep(
    setting: str,
    values: Sequence[Any],
    series: Mapping[Series, Sequence[Variant]],
    note: str,
) -> Drawing:
    with panels(2, 4.2, 3.5) as (figure, (accuracy, leakage)):
        _draw_series(accuracy, series, setting, values, _accuracy)
        _draw_series(leakage, series, setting, values, _worst_similarity)
        accuracy.set(xlabel=setting, ylabel=ACCURACY)
        accuracy.yaxis.set_major_formatter(PERCENT)
        leakage.set(xlabel=setting, ylabel=f"{LEAKAGE}, worst attack", ylim=(0, 1.03))
        legend_below(figure, [accuracy, leakage])
    short = short_name(setting)
    return Drawing(
        f"sweep-{short}",
        f"What {short} does",
        "Mean over seeds; bars: standard deviation. Leakage is that of the attack that "
        "got most, of all adversaries. Dashed lines: methods that do not vary with it."
        f"{note}",
        f"Accuracy and leakage against {setting}.",
        figure,
    )


def _accuracy(variant: Variant) -> Spread | None:
    return variant.accuracy


def _worst_similarity(variant: Variant) -> Spread | None:
    leakage = variant.worst_leakage(ordinary=False)
    return leakage.similarity if leakage else None


def _draw_series(
    axes: Axes,
    series: Mapping[Series, Sequence[Variant]],
    setting: str,
    values: Sequence[Any],
    measure: Callable[[Variant], Spread | None],
) -> None:
    """Draw a measure against a setting: a line where it varies, else a level."""
    lines: dict[str, int] = {}  # drawn so far, by method
    for (method, varies, others), variants in series.items():
        measured = [
            (variant, spread) for variant in variants if (spread := measure(variant))
        ]
        style: dict[str, Any] = {
            "color": colour_of(variants[0]),
            "label": ", ".join(
                [method, *(f"{short_name(name)} {value}" for name, value in others)]
            ),
        }
        if not varies:
            for _, spread in measured:
                axes.axhline(spread.mean, ls="--", lw=1.2, **style)
        elif measured:
            lines[method] = lines.get(method, -1) + 1
            axes.errorbar(
                [values.index(variant.axes[setting]) for variant, _ in measured],
                [spread.mean for _, spread in measured],
                yerr=[spread.error for _, spread in measured],
                marker=marker_of(variants[0]),
                ls=LINES[lines[method] % len(LINES)],
                capsize=2,
                **style,
            )
    axes.set_xticks(range(len(values)), list(map(_as_label, values)))


def _by_series(
    variants: Sequence[Variant], setting: str
) -> dict[Series, list[Variant]]:
    """Put variants that differ in one setting only together."""
    series: dict[Series, list[Variant]] = {}
    for variant in variants:
        others = tuple(
            (name, value) for name, value in variant.axes.items() if name != setting
        )
        key = variant.method, setting in variant.axes, others
        series.setdefault(key, []).append(variant)
    return series


def _as_label(value: object) -> str:
    return setting_without_folders(str(value))
