"""Figures of how leakage grows: with rounds, exposures, and smaller batches."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from instahide_fl.attacks.verdict import NO_VERDICT
from instahide_fl.report.drawing import Drawing, legend_below, panels
from instahide_fl.report.frames import Study
from instahide_fl.report.leakage import Variant, variants
from instahide_fl.report.study_figures import (
    LEAKAGE,
    attacked_rounds,
    colour_of,
    line_of,
    marker_of,
)


def exposures(study: Study) -> Iterator[Drawing]:
    """Draw leakage against round, recorded rounds and batch size, where these vary."""
    drawings = (
        _by_round(study),
        _against(
            study,
            "attacked_rounds",
            "recorded rounds, put together",
            "leakage-by-exposures",
            "Leakage against exposures",
        ),
        _against(
            study,
            "batch_size",
            "images in an update",
            "leakage-by-batch-size",
            "Leakage against batch size",
        ),
    )
    yield from (one for one in drawings if one is not None)


def _by_round(study: Study) -> Drawing | None:
    frame = attacked_rounds(study)
    if frame.empty:
        return None
    groups = list(frame.groupby(["audit", "attack"], sort=False))
    return _drawn(
        study,
        [(_title(*key), rows) for key, rows in groups],
        "round",
        "round",
        "leakage-by-round",
        "Leakage against round",
    )


def _against(
    study: Study, column: str, label: str, name: str, title: str
) -> Drawing | None:
    """Draw attacks that audits tried with several values of a column."""
    frame = study.attacks
    if frame.empty or "private_ssim_mean" not in frame:
        return None
    other = {"batch_size": "attacked_rounds", "attacked_rounds": "batch_size"}[column]
    usable = frame[
        (frame["verdict"] != NO_VERDICT) & frame["private_ssim_mean"].notna()
    ]
    groups = [
        (f"{attack}, {_start(start)}, {other_label}", rows)
        for (attack, start, value), rows in usable.groupby(
            ["attack", "start", other], sort=False
        )
        if rows[column].nunique() > 1
        for other_label in [_fixed(other, value)]
    ]
    return _drawn(study, groups, column, label, name, title) if groups else None


def _start(start: str) -> str:
    return f"{start} parameters" if start else "a run"


def _fixed(column: str, value: int) -> str:
    if column == "batch_size":
        return f"batch {value}"
    return f"{value} round" + ("s" if value > 1 else "")


def _title(audit: str, attack: str) -> str:
    return f"{attack}: {audit}" if audit else attack


def _drawn(
    study: Study,
    groups: list[tuple[str, pd.DataFrame]],
    column: str,
    label: str,
    name: str,
    title: str,
) -> Drawing:
    with panels(len(groups), 4.6, 3.3) as (figure, cells):
        for axes, (heading, rows) in zip(cells, groups, strict=True):
            for one in variants(study):
                _line(axes, study, one, one.rows(rows), column)
            axes.set(title=heading, xlabel=label, ylabel=LEAKAGE, ylim=(0, 1.03))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        legend_below(figure, cells)
    return Drawing(
        name,
        title,
        "Mean over seeds; bars: standard deviation.",
        f"{title}, by method: {'; '.join(heading for heading, _ in groups)}.",
        figure,
    )


def _line(
    axes: Axes, study: Study, variant: Variant, rows: pd.DataFrame, column: str
) -> None:
    if rows.empty:
        return
    values = rows.groupby(column)["private_ssim_mean"]
    mean, deviation = values.mean(), values.std().fillna(0.0)
    axes.errorbar(
        mean.index,
        mean,
        yerr=deviation,
        color=colour_of(study, variant.method),
        marker=marker_of(study, variant.method),
        ls=line_of(study, variant),
        ms=5,
        capsize=2,
        label=variant.label,
    )
