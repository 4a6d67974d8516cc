"""The same private images, and what attacks recovered of them from each method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from numpy.lib.npyio import NpzFile

from instahide_fl.audit.scoring.verdict import NO_LEAK, NO_VERDICT
from instahide_fl.errors import OutputError
from instahide_fl.report.attack_rows import AttackFile
from instahide_fl.report.drawing import Drawing, panels
from instahide_fl.report.leakage import variants
from instahide_fl.report.results import Study

COLUMNS = 10  # images side by side
ROWS = 14  # variants below each other
GAP = 0.3  # of an image's side, below each row: for the similarity
INCHES = 0.72  # side of an image

_LABELS = {NO_LEAK: "\n(no leak found)", NO_VERDICT: "\n(failed its control)"}

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Shown:
    """What an attack kept of a run.

    Attributes:
        label: of the variant; a second line says so where the attack found no leak.
        images: by the bytes of the image that was encoded: what the attacker recovered,
            u8[C,H,W], and SSIM with the most similar private image in the encoding.
        sources: u8[n,C,H,W], the images that were encoded, each once.
    """

    label: str
    images: Mapping[bytes, tuple[Pixels, float]]
    sources: Sequence[Pixels]


def reconstruction_grids(study: Study) -> Iterator[Drawing]:
    """Draw one grid for each attack whose images were kept.

    Raises:
        OutputError: a file of images is damaged.
    """
    for number, ((audit, attack), found) in enumerate(_by_attack(study).items()):
        seed, shown = found
        yield _grid(f"reconstructions-{number + 1}", audit, attack, seed, shown[:ROWS])


def _by_attack(study: Study) -> dict[tuple[str, str], tuple[int, list[Shown]]]:
    """Return what each attack kept of each variant; all of one seed."""
    found: dict[tuple[str, str], dict[int, list[Shown]]] = {}
    for variant in variants(study):
        for member in variant.members:
            for file in member.run.attack_files if member.run else ():
                if file.pixels:
                    label = variant.label + _LABELS.get(file.data["verdict"], "")
                    shown = _read(label, file, file.pixels)
                    by_seed = found.setdefault((file.audit, file.data["attack"]), {})
                    by_seed.setdefault(member.seed, []).append(shown)
    # The seed that most variants have: the first of them, if there are several.
    return {
        key: max(by_seed.items(), key=lambda one: len(one[1]))
        for key, by_seed in found.items()
    }


def _read(label: str, file: AttackFile, path: Path) -> Shown:
    try:
        with np.load(path) as kept:
            return _once_each(label, kept)
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{path} is damaged: attack the run again") from error


def _once_each(label: str, kept: NpzFile) -> Shown:
    images: dict[bytes, tuple[Pixels, float]] = {}
    sources = []
    rows = zip(kept["sources"], kept["reconstructions"], kept["ssim"], strict=True)
    for source, image, similarity in rows:
        if source.tobytes() not in images:
            images[source.tobytes()] = image, float(similarity)
            sources.append(source)
    return Shown(label, images, sources)


def _grid(
    name: str, audit: str, attack: str, seed: int, shown: Sequence[Shown]
) -> Drawing:
    originals = _in_most(shown)
    height, width = originals[0].shape[1:]
    lines = 1 + len(shown)
    step = height * (1 + GAP)
    size = INCHES * (len(originals) + 0.2), INCHES * lines * (1 + GAP) + 0.1
    with panels(1, size[0] + 1.9, size[1]) as (figure, (axes,)):
        for column, original in enumerate(originals):
            _place(axes, original, column, 0.0)
            for line, one in enumerate(shown, start=1):
                if known := one.images.get(original.tobytes()):
                    _place(axes, known[0], column, line * step)
                    axes.text(
                        *((column + 0.5) * width * 1.06, line * step + height * 1.04),
                        f"{known[1]:.2f}",
                        ha="center",
                        va="top",
                        fontsize=7.5,
                    )
        axes.set(xlim=(0, len(originals) * width * 1.06), ylim=(lines * step, 0))
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        labels = ["private image", *(one.label for one in shown)]
        axes.set_yticks([line * step + height / 2 for line in range(lines)], labels)
        axes.set_xticks([])
        axes.tick_params(length=0)
    where = f"{attack}: {audit}" if audit else attack
    return Drawing(
        name,
        f"What the attacker recovered ({where})",
        "The first images, not the best, of the same clients: each column is one "
        "private image, encoded and sent under every method. Below each: SSIM with "
        "the most similar private image in that encoding, which with mixing need not "
        f"be the one on top. Seed {seed}. An empty place: not recovered.",
        f"Grid of {len(originals)} private images and what {attack} recovered of them "
        f"from {', '.join(one.label.replace(chr(10), ' ') for one in shown)}.",
        figure,
    )


def _in_most(shown: Sequence[Shown]) -> list[Pixels]:
    """Return the images that most variants have, in the order of the first variant."""
    every = {source.tobytes(): source for one in shown for source in one.sources}
    count = {key: sum(key in one.images for one in shown) for key in every}
    ordered = sorted(every, key=lambda key: -count[key])  # stable
    return [every[key] for key in ordered[:COLUMNS]]


def _place(axes: Axes, image: Pixels, column: int, top: float) -> None:
    height, width = image.shape[1:]
    left = column * width * 1.06
    picture = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    axes.imshow(
        picture,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="none",
        extent=(left, left + width, top + height, top),
    )
