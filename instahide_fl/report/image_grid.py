"""The same private images, and what attacks recovered of them from each method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.lib.npyio import NpzFile

from instahide_fl.audit.scoring.verdict import NO_LEAK, NO_VERDICT
from instahide_fl.errors import OutputError
from instahide_fl.report.attack_rows import AttackFile, attack_title
from instahide_fl.report.drawing import Drawing, panels
from instahide_fl.report.variants import Variant

COLUMNS = 10  # images side by side
ROWS = 14  # variants below each other
PITCH = 1.06  # from image to image, in widths of an image
GAP = 0.3  # below each row, in heights of an image: for the similarity
INCHES = 0.72  # side of an image

_NOTES = {NO_LEAK: "\n(no leak found)", NO_VERDICT: "\n(failed the reference)"}

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class RecoveredImages:
    """The images that an attack recovered from one run.

    Attributes:
        label: The label of the variant; a second line says so where the attack is
            judged to show no leak, or nothing at all.
        images: By the bytes of the image that was encoded: what the attacker recovered,
            u8[C,H,W], and SSIM with the most similar private image in the encoding.
        sources: u8[n,C,H,W], the images that were encoded, each once.
    """

    label: str
    images: Mapping[bytes, tuple[Pixels, float]]
    sources: Sequence[Pixels]


def reconstruction_grids(variants: Sequence[Variant]) -> Iterator[Drawing]:
    """Draw one grid for each attack whose images were saved.

    Raises:
        OutputError: a file of images is damaged.
    """
    grids = _by_attack(variants)
    for number, ((audit, attack), (seed, rows)) in enumerate(grids.items(), start=1):
        figure, originals = _draw_grid(rows[:ROWS])
        labels = (row.label.replace("\n", " ") for row in rows[:ROWS])
        yield Drawing(
            f"reconstructions-{number}",
            f"What the attacker recovered ({attack_title(attack, audit)})",
            "The first images, not the best, of the same clients: each column is one "
            "private image, encoded and sent under every method. Below each: SSIM with "
            "the most similar private image in that encoding, which with mixing need "
            f"not be the one on top. Seed {seed}. An empty place: not recovered.",
            f"Grid of {originals} private images and what {attack} recovered of them "
            f"from {', '.join(labels)}.",
            figure,
        )


def _by_attack(
    variants: Sequence[Variant],
) -> dict[tuple[str, str], tuple[int, list[RecoveredImages]]]:
    """Return the images of each attack, by audit and attack: a seed, and its variants.

    The images of an attack are all of one seed.
    """
    by_attack: dict[tuple[str, str], dict[int, list[RecoveredImages]]] = {}
    for variant in variants:
        for member in variant.members:
            for file in member.run.attack_files if member.run else ():
                if file.pixels:
                    label = variant.label + _NOTES.get(file.data["verdict"], "")
                    recovered = _read(label, file, file.pixels)
                    by_seed = by_attack.setdefault(
                        (file.audit, file.data["attack"]), {}
                    )
                    by_seed.setdefault(member.seed, []).append(recovered)
    # The seed that most variants have: the first of them, if there are several.
    return {
        key: max(by_seed.items(), key=lambda item: len(item[1]))
        for key, by_seed in by_attack.items()
    }


def _read(label: str, file: AttackFile, path: Path) -> RecoveredImages:
    try:
        with np.load(path) as arrays:
            return _once_each(label, arrays)
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{path} is damaged: attack the run again") from error


def _once_each(label: str, arrays: NpzFile) -> RecoveredImages:
    """Return the first reconstruction of each image."""
    images: dict[bytes, tuple[Pixels, float]] = {}
    sources = []
    rows = zip(
        arrays["sources"], arrays["reconstructions"], arrays["ssim"], strict=True
    )
    for source, image, similarity in rows:
        if source.tobytes() not in images:
            images[source.tobytes()] = image, float(similarity)
            sources.append(source)
    return RecoveredImages(label, images, sources)


def _draw_grid(rows: Sequence[RecoveredImages]) -> tuple[Figure, int]:
    """Draw the originals, and a row of what was recovered from each variant.

    Returns:
        The figure, and the number of originals.
    """
    originals = _in_most(rows)
    height, width = originals[0].shape[1:]
    lines = 1 + len(rows)
    step = height * (1 + GAP)
    page_width = INCHES * (len(originals) + 0.2) + 1.9
    page_height = INCHES * lines * (1 + GAP) + 0.1
    with panels(1, page_width, page_height) as (figure, (axes,)):
        for column, original in enumerate(originals):
            _draw_image(axes, original, column, 0.0)
            for line, row in enumerate(rows, start=1):
                if recovered := row.images.get(original.tobytes()):
                    image, similarity = recovered
                    _draw_image(axes, image, column, line * step)
                    axes.text(
                        (column + 0.5) * width * PITCH,
                        line * step + height * 1.04,
                        f"{similarity:.2f}",
                        ha="center",
                        va="top",
                        fontsize=7.5,
                    )
        axes.set(xlim=(0, len(originals) * width * PITCH), ylim=(lines * step, 0))
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        labels = ["private image", *(row.label for row in rows)]
        axes.set_yticks([line * step + height / 2 for line in range(lines)], labels)
        axes.set_xticks([])
        axes.tick_params(length=0)
    return figure, len(originals)


def _in_most(rows: Sequence[RecoveredImages]) -> list[Pixels]:
    """Return the images that most variants have, in the order of the first variant."""
    by_bytes = {source.tobytes(): source for row in rows for source in row.sources}
    count = {key: sum(key in row.images for row in rows) for key in by_bytes}
    ordered = sorted(by_bytes, key=lambda key: -count[key])  # stable
    return [by_bytes[key] for key in ordered[:COLUMNS]]


def _draw_image(axes: Axes, image: Pixels, column: int, top: float) -> None:
    height, width = image.shape[1:]
    left_edge = column * width * PITCH
    # [3,H,W] -> [H,W,3]; one channel [1,H,W] -> [H,W]
    picture = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    axes.imshow(
        picture,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="none",
        extent=(left_edge, left_edge + width, top + height, top),
    )
