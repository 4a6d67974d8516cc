"""The picture of a membership attack: ROC curves on logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from instahide_fl.audit.scoring.membership_scores import MembershipScores
from instahide_fl.files import atomic_file

MIN_RATE = 1e-3  # where both axes begin


def save_membership_picture(path: Path, scores: MembershipScores, title: str) -> None:
    """Draw the ROC curve of each score.

    Args:
        path: The PNG file.
        scores: The scores of a membership attack.
        title: The title of the picture.

    Raises:
        OutputError: The file cannot be written.
    """
    figure = Figure(figsize=(5.5, 5), dpi=120)
    axes = figure.subplots()
    for name, figures in scores.metrics.items():
        decides = name == scores.decided_by
        label = f"{name}{' (decides)' if decides else ''}, AUC {figures['auc']:.2f}"
        draw_roc(axes, figures, label=label, linewidth=2.2 if decides else 1.2)
    finish_roc_axes(axes, "gray")
    accuracy = scores.test_accuracy
    beside = "" if accuracy is None else f"\nmodel's test accuracy {accuracy:.1%}"
    axes.set_title(f"{title}{beside}", fontsize=9)
    axes.legend(loc="lower right", fontsize=8)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")


def draw_roc(axes: Axes, figures: Mapping[str, Any], **style: Any) -> None:
    """Draw the curve in the figures of `membership_metrics` as steps.

    Args:
        axes: The axes to draw into.
        figures: The figures of one score.
        style: What Matplotlib is told of the line: its label, colour or width.
    """
    false_rates, true_rates = figures["roc"]["fpr"], figures["roc"]["tpr"]
    # No false positive lies at minus infinity: the line begins at the left edge.
    shown = [max(rate, MIN_RATE) for rate in false_rates]
    axes.plot(shown, true_rates, drawstyle="steps-post", **style)


def finish_roc_axes(axes: Axes, colour: str) -> None:
    """Make both axes logarithmic, and draw the line of chance.

    Args:
        axes: The axes with the curves.
        colour: The colour of that line.
    """
    chance = [MIN_RATE, 1.0]
    axes.plot(chance, chance, color=colour, linestyle=":", linewidth=1, label="chance")
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(MIN_RATE, 1),
        ylim=(MIN_RATE, 1.05),
        xlabel="false positive rate: held-out images taken for members",
        ylabel="true positive rate: members found",
    )
    for axis in (axes.xaxis, axes.yaxis):
        # Powers of ten need Matplotlib's mathematical text, which reports switch off.
        axis.set_major_formatter(lambda rate, _: f"{100 * rate:g}%")
        axis.set_minor_formatter(NullFormatter())
