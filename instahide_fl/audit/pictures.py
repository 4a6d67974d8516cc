"""Pictures of an attack: what it recovered, and how that changes with training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from instahide_fl.audit.pool_search_picture import save_component_picture
from instahide_fl.files import atomic_file
from instahide_fl.metrics.correction import negative
from instahide_fl.pictures.contact_sheet import save_contact_sheet

if TYPE_CHECKING:
    from instahide_fl.audit.attack_result import AttackResult
    from instahide_fl.audit.scoring.attack_scores import Column

COLUMNS = 12  # images side by side
KEPT = 32  # images whose pixels are kept for the grids of a study


def save_attack_pictures(result: AttackResult, folder: Path) -> None:
    """Draw NAME.png, and NAME-rounds.png where several rounds were attacked.

    NAME.npz keeps the pixels, so that a study can put its methods below each other:
    u8[n,C,H,W] of `sources`, `originals`, `encodings` and `reconstructions`, and f64[n]
    `ssim` with the original.

    Nothing is drawn of an attack that recovers no images.

    Args:
        result: of the attack.
        folder: where to.

    Raises:
        OutputError: a file cannot be written.
    """
    name = result.file_stem
    if result.scores.shown_components:
        save_component_picture(folder / f"{name}.png", result)
    elif result.scores.shown:
        _save_grid(folder / f"{name}.png", result)
        _save_pixels(folder / f"{name}.npz", result)
    elif not result.subject.truths:
        _save_recovered(folder / f"{name}.png", result)
    if len(result.by_round) > 1 and result.scores.private:
        _save_rounds(folder / f"{name}-rounds.png", result)


def _save_pixels(path: Path, result: AttackResult) -> None:
    kept: dict[str, Any] = {
        kind: _bytes(_joined(result, kind)[:KEPT]).numpy()
        for kind in ("sources", "originals", "encodings", "reconstructions")
    }
    kept["ssim"] = _joined(result, "ssim")[:KEPT].numpy()
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **kept)


def _joined(result: AttackResult, kind: str) -> Tensor:
    return torch.cat([getattr(one, kind) for one in result.scores.shown])


def _save_grid(path: Path, result: AttackResult) -> None:
    originals, encodings, found = (
        _joined(result, kind)[:COLUMNS]
        for kind in ("originals", "encodings", "reconstructions")
    )
    method = result.subject.config.instahide.method
    rows = [("private image", _bytes(originals))]
    if method != "none":
        rows.append(("its encoding", _bytes(encodings)))
    recovered = "decoded image" if result.scores.target == "private" else "recovered"
    rows.append((recovered, _bytes(found)))
    title = f"{result.attack.name} by {result.threat_model.name}: {result.verdict}"
    save_contact_sheet(path, rows, title)


def _save_recovered(path: Path, result: AttackResult) -> None:
    """Draw what came out where there is nothing to hold it against."""
    statistics = result.subject.statistics
    images = [
        statistics.restore(one.images[:COLUMNS].cpu().nan_to_num(0.0, 0.0, 0.0))
        for one in result.reconstruction.recovered
        if one.images is not None and len(one.images)
    ]
    if not images:
        return
    first = torch.cat(images)[:COLUMNS]
    rows = [
        ("recovered", _bytes(first)),
        ("its negative", _bytes(negative(first, statistics))),
    ]
    title = f"{result.attack.name} by {result.threat_model.name}: {result.verdict}"
    save_contact_sheet(path, rows, title)


def _save_rounds(path: Path, result: AttackResult) -> None:
    """Draw leakage beside accuracy, round by round."""
    rounds = list(result.by_round)
    figure = Figure(figsize=(7, 4), dpi=120)
    leakage = figure.subplots()
    columns: list[tuple[str, list[Column | None]]] = [
        ("against the private image", [s.private for s in result.by_round.values()]),
        ("against the encoding", [s.encoding for s in result.by_round.values()]),
    ]
    for label, column in columns:
        known = [
            (number, one.attack.sign_ssim.mean)
            for number, one in zip(rounds, column, strict=True)
            if one is not None
        ]
        if known:
            leakage.plot(*zip(*known, strict=True), marker="o", label=label)
    leakage.set(xlabel="round", ylabel="SSIM of reconstructions", ylim=(-0.05, 1.05))
    accuracies = [
        (number, one)
        for number, one in result.subject.accuracies().items()
        if one is not None
    ]
    accuracy = leakage.twinx()
    accuracy.plot(
        *zip(*accuracies, strict=True), color="gray", linestyle="--", label="accuracy"
    )
    accuracy.set(ylabel="accuracy on clean test images", ylim=(-0.05, 1.05))
    figure.legend(loc="upper center", ncols=3, fontsize=8)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
