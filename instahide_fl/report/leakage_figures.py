"""Figures of leakage: image by image, by round, by exposures, by batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from instahide_fl.report.attack_rows import attack_title
from instahide_fl.report.drawing import FAINT, Drawing, legend_below, panels
from instahide_fl.report.leakage import ATTACK_KEYS, images_recovered
from instahide_fl.report.results import Study
from instahide_fl.report.study_figures import (
    LEAKAGE,
    PERCENT,
    colour_of,
    line_of,
    marker_of,
)
from instahide_fl.report.variants import Variant

Panel: TypeAlias = tuple[str, pd.DataFrame]
"""The heading of a plot, and the rows of `Study.attacks` that it shows."""


@dataclass(frozen=True)
class _Axis:
    """What leakage is drawn against.

    Attributes:
        column: The column of the rows.
        label: The label below the plots.
        name: The name of the figure's files.
        title: The title of the figure.
    """

    column: str
    label: str
    name: str
    title: str


BY_ROUND = _Axis("round", "round", "leakage-by-round", "Leakage against round")
BY_EXPOSURES = _Axis(
    "attacked_rounds",
    "recorded rounds, put together",
    "leakage-by-exposures",
    "Leakage against exposures",
)
BY_BATCH_SIZE = _Axis(
    "batch_size",
    "images in an update",
    "leakage-by-batch-size",
    "Leakage against batch size",
)


@dataclass(frozen=True)
class _ImageScores:
    """How alike one attack's images are to their originals.

    Attributes:
        title: The attack.
        by_variant: The SSIM of every image with private images, by variant.
        guesses: The SSIM of a guess at every image.
    """

    title: str
    by_variant: Sequence[tuple[Variant, Sequence[float]]]
    guesses: Sequence[float]


def exposures(study: Study, variants: Sequence[Variant]) -> Iterator[Drawing]:
    """Draw leakage against round, recorded rounds and batch size, where these vary."""
    panels_by_axis = (
        (BY_ROUND, _panels_by_round(study)),
        (BY_EXPOSURES, _panels_against(study.attacks, BY_EXPOSURES, "batch_size")),
        (
            BY_BATCH_SIZE,
            _panels_against(study.attacks, BY_BATCH_SIZE, "attacked_rounds"),
        ),
    )
    for axis, shown in panels_by_axis:
        if shown:
            yield _draw_against(axis, shown, variants)


def _panels_by_round(study: Study) -> list[Panel]:
    """Return one plot for each attack on several rounds: SSIM and accuracy by round."""
    rows = [
        {
            **member.key,
            "audit": attack_file.audit,
            "attack": attack_file.data["attack"],
            "round": scores["round"],
            "test_accuracy": scores["test_accuracy"],
            "private_ssim_mean": scores["private"]["sign_best"]["ssim"]["mean"],
        }
        for member in study.members
        if member.run
        for attack_file in member.run.attack_files
        for scores in attack_file.data["by_round"]
        if "private" in scores
    ]
    if not rows:
        return []
    by_attack = pd.DataFrame(rows).groupby(["audit", "attack"], sort=False)
    return [
        (attack_title(attack, audit), frame) for (audit, attack), frame in by_attack
    ]


def _panels_against(
    attacks: pd.DataFrame,
    axis: _Axis,
    fixed: Literal["batch_size", "attacked_rounds"],
) -> list[Panel]:
    """Return one plot for each attack that was tried with several values of a column.

    Args:
        attacks: `Study.attacks`.
        axis: The column that varies within a plot.
        fixed: The column that does not.
    """
    if attacks.empty or "private_ssim_mean" not in attacks:
        return []
    by_attack = images_recovered(attacks).groupby(
        ["attack", "start", fixed], sort=False
    )
    return [
        (f"{attack}, {_start(start)}, {_fixed(fixed, value)}", rows)
        for (attack, start, value), rows in by_attack
        if rows[axis.column].nunique() > 1
    ]


def _start(start: str) -> str:
    return f"{start} parameters" if start else "a run"


def _fixed(column: str, value: int) -> str:
    if column == "batch_size":
        return f"batch {value}"
    return f"{value} round" + ("s" if value > 1 else "")


def _draw_against(
    axis: _Axis, shown: Sequence[Panel], variants: Sequence[Variant]
) -> Drawing:
    with panels(len(shown), 4.6, 3.3) as (figure, cells):
        for axes, (heading, rows) in zip(cells, shown, strict=True):
            for variant in variants:
                _draw_line(axes, variant, variant.rows(rows), axis.column)
            axes.set(title=heading, xlabel=axis.label, ylabel=LEAKAGE, ylim=(0, 1.03))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        legend_below(figure, cells)
    headings = "; ".join(heading for heading, _ in shown)
    return Drawing(
        axis.name,
        axis.title,
        "Mean over seeds; bars: standard deviation.",
        f"{axis.title}, by method: {headings}.",
        figure,
    )


def _draw_line(axes: Axes, variant: Variant, rows: pd.DataFrame, column: str) -> None:
    if rows.empty:
        return
    values = rows.groupby(column)["private_ssim_mean"]
    mean, deviation = values.mean(), values.std().fillna(0.0)
    axes.errorbar(
        mean.index,
        mean,
        yerr=deviation,
        color=colour_of(variant),
        marker=marker_of(variant),
        ls=line_of(variant),
        ms=5,
        capsize=2,
        label=variant.label,
    )


def image_distributions(study: Study, variants: Sequence[Variant]) -> Drawing | None:
    """Draw which share of images lies above each similarity; None if not recorded."""
    by_attack = list(_scores_by_image(study, variants))
    if not by_attack:
        return None
    with panels(len(by_attack), 4.4, 3.1) as (figure, cells):
        for axes, scores in zip(cells, by_attack, strict=True):
            _draw_distribution(axes, scores)
        legend_below(figure, cells)
    return Drawing(
        "similarity-by-image",
        "Which share of images leaks how much",
        "All seeds together. To the right of the dotted line (0.5) images are counted "
        "as recognisable: a convention, no threshold of perception.",
        "For each attack, the share of images above every similarity, by method.",
        figure,
    )


def _scores_by_image(
    study: Study, variants: Sequence[Variant]
) -> Iterator[_ImageScores]:
    """Yield the similarity of every single image, attack by attack."""
    attacks = study.attacks
    if attacks.empty or "private_ssim_mean" not in attacks:
        return
    per_image = {
        str(attack_file.path): attack_file.data.get("per_image", {})
        for member in study.members
        if member.run
        for attack_file in member.run.attack_files
    }
    for (audit, attack, _), rows in attacks.groupby(ATTACK_KEYS, sort=False):
        by_variant: list[tuple[Variant, list[float]]] = []
        guesses: list[float] = []
        for variant in variants:
            similarities: list[float] = []
            for path in variant.rows(rows)["file"]:
                if values := per_image[path].get("private"):
                    similarities.extend(values)
                    guesses.extend(per_image[path]["no_information"])
            if similarities:
                by_variant.append((variant, similarities))
        if by_variant:
            yield _ImageScores(attack_title(attack, audit), by_variant, guesses)


def _draw_distribution(axes: Axes, scores: _ImageScores) -> None:
    for variant, values in scores.by_variant:
        axes.step(
            *_survival(values),
            where="pre",
            label=variant.label,
            color=colour_of(variant),
            ls=line_of(variant),
        )
    guesses = _survival(scores.guesses)
    axes.step(*guesses, where="pre", color=FAINT, lw=1, label="a guess")
    axes.axvline(0.5, color=FAINT, lw=0.8, ls=":")
    axes.set(title=scores.title, xlim=(-0.1, 1.02), ylim=(-0.03, 1.03))
    axes.set(xlabel=f"{LEAKAGE}, x", ylabel="images with more than x")
    axes.yaxis.set_major_formatter(PERCENT)


def _survival(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the steps of the curve: similarities, and the share of images above."""
    ordered = sorted(values)
    count = len(ordered)
    above = [(count - i) / count for i in range(count)]
    return [-0.1, *ordered, 1.02], [1.0, *above, 0.0]
