"""A picture of accuracy against the number of encodings that are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from instahide_fl.files import atomic_file


def save_evaluation_picture(
    path: Path, accuracy_by_encodings: Sequence[float], clean_accuracy: float
) -> None:
    """Draw the accuracy with 1, 2, ... encodings, and the clean one as a dashed line.

    Args:
        path: The PNG file.
        accuracy_by_encodings: The accuracies in [0, 1]; the t-th averages t encodings
            of each image.
        clean_accuracy: The accuracy in [0, 1] on the images themselves.

    Raises:
        OutputError: the file cannot be written.
    """
    figure = Figure(figsize=(5.6, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    counts = range(1, len(accuracy_by_encodings) + 1)
    axes.plot(counts, accuracy_by_encodings, marker="o", markersize=3, label="encoded")
    axes.axhline(clean_accuracy, color="black", ls="--", lw=1, label="clean")
    axes.set_xlabel("encodings averaged for each test image")
    axes.set_ylabel("accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
