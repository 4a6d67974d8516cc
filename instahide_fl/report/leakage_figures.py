"""Figures of leakage: image by image, by round, by exposures, by batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from instahide_fl.audit.scoring.verdict import NO_VERDICT
from instahide_fl.report.drawing import FAINT, Drawing, legend_below, panels
from instahide_fl.report.leakage import ATTACK_KEYS, Variant, variants
from instahide_fl.report.results import Study
from instahide_fl.report.study_figures import (
    LEAKAGE,
    PERCENT,
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
    frame = _attacked_rounds(study)
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


def _by_images(
    study: Study,
) -> Iterator[tuple[str, dict[str, list[float]], list[float]]]:
    """Yield attack, SSIM of every image by variant, and of guesses, for each attack."""
    frame = study.attacks
    if frame.empty or "private_ssim_mean" not in frame:
        return
    files = {
        str(file.path): file.data.get("per_image", {})
        for one in study.members
        if one.run
        for file in one.run.attack_files
    }
    for (audit, attack, _), rows in frame.groupby(ATTACK_KEYS, sort=False):
        found: dict[str, list[float]] = {}
        guesses: list[float] = []
        for one in variants(study):
            for path in one.rows(rows)["file"]:
                if values := files[path].get("private"):
                    found.setdefault(one.label, []).extend(values)
                    guesses.extend(files[path]["no_information"])
        if found:
            yield (f"{attack}: {audit}" if audit else attack), found, guesses


def image_distributions(study: Study) -> Drawing | None:
    """Draw which share of images lies above each similarity; None if not kept."""
    known = list(_by_images(study))
    if not known:
        return None
    by_label = {one.label: one for one in variants(study)}
    with panels(len(known), 4.4, 3.1) as (figure, cells):
        for axes, (title, found, guesses) in zip(cells, known, strict=True):
            for label, values in found.items():
                one = by_label[label]
                style = {
                    "color": colour_of(study, one.method),
                    "ls": line_of(study, one),
                }
                axes.step(*_survival(values), where="pre", label=label, **style)
            axes.step(
                *_survival(guesses), where="pre", color=FAINT, lw=1, label="a guess"
            )
            axes.axvline(0.5, color=FAINT, lw=0.8, ls=":")
            axes.set(title=title, xlim=(-0.1, 1.02), ylim=(-0.03, 1.03))
            axes.set(xlabel=f"{LEAKAGE}, x", ylabel="images with more than x")
            axes.yaxis.set_major_formatter(PERCENT)
        legend_below(figure, cells)
    return Drawing(
        "similarity-by-image",
        "Which share of images leaks how much",
        "All seeds together. To the right of the dotted line (0.5) images are counted "
        "as recognisable: a convention, no threshold of perception.",
        "For each attack, the share of images above every similarity, by method.",
        figure,
    )


def _survival(values: Sequence[float]) -> tuple[list[float], list[float]]:
    ordered = sorted(values)
    count = len(ordered)
    above = [(count - i) / count for i in range(count)]
    return [-0.1, *ordered, 1.02], [1.0, *above, 0.0]


def _attacked_rounds(study: Study) -> pd.DataFrame:
    """Return one row for each round of each attack on several: SSIM and accuracy."""
    rows = [
        {
            **one.key,
            "audit": file.audit,
            "attack": file.data["attack"],
            "round": told["round"],
            "test_accuracy": told["test_accuracy"],
            "private_ssim_mean": told["private"]["sign_best"]["ssim"]["mean"],
        }
        for one in study.members
        if one.run
        for file in one.run.attack_files
        for told in file.data["by_round"]
        if "private" in told
    ]
    return pd.DataFrame(rows)
