"""Figures of a study: accuracy against leakage, curves, and what varied settings do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
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
from instahide_fl.report.leakage import (
    Leakage,
    Spread,
    Variant,
    dominated,
    short_name,
    variants,
    worst_leakage,
)
from instahide_fl.report.results import Study

LEAKAGE = "SSIM with private images"
ACCURACY = "accuracy on clean test images"
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g}%")
MAX_CURVES = 8  # curves in one plot
ORDINARY = "adversaries that every federation has"
EVERYBODY = "all adversaries, also those with more power or knowledge"


def colour_of(study: Study, method: str) -> str:
    """Return a method's colour: the same in all figures."""
    return COLOURS[_place(study, method) % len(COLOURS)]


def marker_of(study: Study, method: str) -> str:
    """Return a method's marker: the same in all figures."""
    return MARKERS[_place(study, method) % len(MARKERS)]


def line_of(study: Study, variant: Variant) -> Any:
    """Return the kind of line that tells a method's variants apart."""
    own = [one.axes for one in variants(study) if one.method == variant.method]
    return LINES[own.index(variant.axes) % len(LINES)]


def _place(study: Study, method: str) -> int:
    return list(study.description["methods"]).index(method)


def trade_off(study: Study, ordinary: bool) -> Drawing | None:
    """Draw accuracy against leakage; None with nothing to draw.

    Args:
        study: with runs that were attacked.
        ordinary: whether only adversaries count that every federation has.
    """
    known = [
        (one, accuracy, leak)
        for one in variants(study)
        if (accuracy := one.spread(study.runs, "final_accuracy"))
        and (leak := worst_leakage(one, study.attacks, ordinary))
    ]
    if not known:
        return None
    points = [(accuracy.mean, leak.similarity.mean) for _, accuracy, leak in known]
    beaten = dominated(points)
    with panels(1, 6.6, 4.6) as (figure, (axes,)):
        _frontier(axes, [p for p, lost in zip(points, beaten, strict=True) if not lost])
        labelled: set[str] = set()
        for (one, accuracy, leak), lost in zip(known, beaten, strict=True):
            _point(axes, study, one, accuracy, leak, lost, one.method not in labelled)
            labelled.add(one.method)
        guess = [leak.baseline.mean for _, _, leak in known]
        axes.axvspan(
            0, max(guess), color=FAINT, alpha=0.12, lw=0, label="a guess reaches"
        )
        axes.set(xlabel=f"leakage: {LEAKAGE}", ylabel=ACCURACY, xlim=(0, 1.08))
        axes.yaxis.set_major_formatter(PERCENT)
        legend_below(figure, [axes])
    who = ORDINARY if ordinary else EVERYBODY
    told = "; ".join(
        f"{one.label}: accuracy {accuracy.mean:.1%}, leakage {leak.similarity.mean:.2f}"
        for one, accuracy, leak in known
    )
    return Drawing(
        "trade-off" if ordinary else "trade-off-all-adversaries",
        f"Accuracy against leakage: {who}",
        "Better is up and to the left. Each point is the attack that got most from a "
        "method. Error bars: standard deviation over seeds. Hollow grey points are "
        "dominated: by their means another method is at least as good in both, though "
        "error bars may overlap.",
        f"Accuracy against leakage. {told}.",
        figure,
    )


def _frontier(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    ordered = sorted((leak, accuracy) for accuracy, leak in points)
    axes.step(
        *zip(*ordered, strict=True), where="post", color=FAINT, lw=1, ls=":", zorder=1
    )


def _point(
    axes: Axes,
    study: Study,
    variant: Variant,
    accuracy: Spread,
    leak: Leakage,
    lost: bool,
    labelled: bool,
) -> None:
    colour = colour_of(study, variant.method)
    marker, x, y = marker_of(study, variant.method), leak.similarity.mean, accuracy.mean
    bars: dict[str, Any] = {
        "color": FAINT if lost else colour,
        "lw": 1,
        "capsize": 2,
        "zorder": 2,
    }
    if leak.similarity.error or accuracy.error:
        axes.errorbar(x, y, accuracy.error, leak.similarity.error, **bars)
    (dot,) = axes.plot(
        *(x, y, marker),
        ms=8,
        mfc="none" if lost else colour,
        mec=FAINT if lost else colour,
        zorder=3,
    )
    tip(dot, f"{variant.label}: accuracy {y:.1%}, SSIM {x:.2f} ({leak.source})")
    if labelled:
        axes.plot([], [], marker, ms=7, color=colour, label=variant.method)
    if variant.axes:
        axes.annotate(
            ", ".join(str(value) for value in variant.axes.values()),
            (x, y),
            xytext=(7, 5),
            textcoords="offset points",
            fontsize=8,
        )


def curves(study: Study) -> Drawing | None:
    """Draw accuracy over rounds, with bands over seeds; None of fewer than two."""
    tested = (
        study.rounds.dropna(subset=["test_accuracy"]) if len(study.rounds) else None
    )
    if tested is None or tested["round"].nunique() < 2:
        return None
    known = [one for one in variants(study) if len(one.rows(study.rounds))]
    together = len(known) <= MAX_CURVES
    methods = [""] if together else list(dict.fromkeys(one.method for one in known))
    with panels(len(methods), *((6.6, 4.2) if together else (4.4, 3.2))) as drawn:
        figure, cells = drawn
        for axes, method in zip(cells, methods, strict=True):
            for one in known:
                if together or one.method == method:
                    _curve(axes, study, one, one.label if together else one.short)
            axes.set(xlabel="round", ylabel=ACCURACY, title="" if together else method)
            axes.yaxis.set_major_formatter(PERCENT)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            if not together:
                axes.legend(loc="lower right")
        if together:
            legend_below(figure, cells)
    ends = "; ".join(
        f"{one.label} ends at {last.mean:.1%}"
        for one in known
        if (last := one.spread(study.runs, "final_accuracy"))
    )
    return Drawing(
        "accuracy-by-round",
        "Accuracy over training",
        "Mean over seeds; bands: standard deviation between seeds.",
        f"Accuracy by round. {ends}.",
        figure,
    )


def _curve(axes: Axes, study: Study, variant: Variant, label: str) -> None:
    rows = variant.rows(study.rounds).dropna(subset=["test_accuracy"])
    by_round = rows.groupby("round")["test_accuracy"]
    mean, deviation = by_round.mean(), by_round.std().fillna(0.0)
    colour, line = colour_of(study, variant.method), line_of(study, variant)
    marker = "o" if len(mean) < 3 else ""
    axes.plot(mean.index, mean, color=colour, ls=line, label=label, marker=marker)
    if deviation.any():
        low, high = mean - deviation, mean + deviation
        axes.fill_between(mean.index, low, high, color=colour, alpha=0.15, lw=0)


def sweeps(study: Study) -> Iterator[Drawing]:
    """Draw accuracy and leakage against each setting that is varied."""
    for name in study.axes:
        if any(name in one.axes for one in variants(study)):
            yield _sweep(study, name)


def _sweep(study: Study, name: str) -> Drawing:
    with panels(2, 4.2, 3.5) as (figure, (accuracy, leakage)):
        _lines(
            accuracy, study, name, lambda one: one.spread(study.runs, "final_accuracy")
        )
        _lines(leakage, study, name, lambda one: _similarity(study, one))
        accuracy.set(xlabel=name, ylabel=ACCURACY)
        accuracy.yaxis.set_major_formatter(PERCENT)
        leakage.set(xlabel=name, ylabel=f"{LEAKAGE}, worst attack", ylim=(0, 1.03))
        legend_below(figure, [accuracy, leakage])
    short = short_name(name)
    return Drawing(
        f"sweep-{short}",
        f"What {short} does",
        "Mean over seeds; bars: standard deviation. Leakage is that of the attack that "
        "got most, of all adversaries. Dashed lines: methods that do not vary with it.",
        f"Accuracy and leakage against {name}.",
        figure,
    )


def _similarity(study: Study, variant: Variant) -> Spread | None:
    leak = worst_leakage(variant, study.attacks, ordinary=False)
    return leak.similarity if leak else None


def _lines(
    axes: Axes,
    study: Study,
    name: str,
    measure: Callable[[Variant], Spread | None],
) -> None:
    values = study.description["axes"][name]
    kinds: dict[str, int] = {}  # of lines, by method
    for (method, varies, others), members in _grouped(study, name).items():
        known = [(one, spread) for one in members if (spread := measure(one))]
        style: dict[str, Any] = {
            "color": colour_of(study, method),
            "label": ", ".join([method, *(f"{short_name(k)} {v}" for k, v in others)]),
        }
        if not varies:
            for _, spread in known:
                axes.axhline(spread.mean, ls="--", lw=1.2, **style)
        elif known:
            kinds[method] = kinds.get(method, -1) + 1
            axes.errorbar(
                [values.index(one.axes[name]) for one, _ in known],
                [spread.mean for _, spread in known],
                yerr=[spread.error for _, spread in known],
                marker=marker_of(study, method),
                ls=LINES[kinds[method] % len(LINES)],
                capsize=2,
                **style,
            )
    axes.set_xticks(range(len(values)), [str(value) for value in values])


def _grouped(
    study: Study, name: str
) -> dict[tuple[str, bool, tuple[tuple[str, Any], ...]], list[Variant]]:
    """Put variants that differ in one setting only together.

    Returns:
        By method, whether it varies with the setting, and values of other axes.
    """
    found: dict[tuple[str, bool, tuple[tuple[str, Any], ...]], list[Variant]] = {}
    for one in variants(study):
        others = tuple((k, v) for k, v in one.axes.items() if k != name)
        found.setdefault((one.method, name in one.axes, others), []).append(one)
    return found
