"""Pictures of an attack: what it recovered, and how that changes with training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from instahide_fl.audit.membership_picture import save_membership_picture
from instahide_fl.audit.pool_search_picture import save_component_picture
from instahide_fl.audit.scoring.shown_images import ShownImages
from instahide_fl.files import atomic_file
from instahide_fl.metrics.correction import negative
from instahide_fl.pictures.contact_sheet import save_contact_sheet
from instahide_fl.transcript.aggregate import ALL_CLIENTS

if TYPE_CHECKING:
    from instahide_fl.audit.attack_result import AttackResult
    from instahide_fl.audit.scoring.attack_scores import ImageSimilarity

COLUMNS = 12  # images side by side
MAX_SAVED = 32  # images whose pixels are saved for the grids of a study


def save_attack_pictures(result: AttackResult, folder: Path) -> None:
    """Draw NAME.png, and NAME-rounds.png where several rounds were attacked.

    NAME.npz holds the pixels, so that a study can put its methods below each other:
    u8[n,C,H,W] of `sources`, `originals`, `encodings` and `reconstructions`, and f64[n]
    `ssim` with the original.

    Of an attack on membership NAME.png holds the ROC curves. Nothing is drawn of other
    attacks that recover no images.

    Args:
        result: The result of the attack.
        folder: The folder to write to.

    Raises:
        OutputError: a file cannot be written.
    """
    name = result.file_stem
    if result.scores.membership:
        save_membership_picture(
            folder / f"{name}.png", result.scores.membership, result.title
        )
    elif result.scores.shown_components:
        save_component_picture(folder / f"{name}.png", result)
    elif result.scores.shown:
        _save_grid(folder / f"{name}.png", result)
        _save_pixels(folder / f"{name}.npz", result)
    elif result.attack_target.ground_truth is None:
        _save_recovered(folder / f"{name}.png", result)
    if len(result.by_round) > 1 and result.scores.private:
        _save_rounds(folder / f"{name}-rounds.png", result)


def _save_pixels(path: Path, result: AttackResult) -> None:
    shown = ShownImages.concatenate(ALL_CLIENTS, result.scores.shown, MAX_SAVED)
    opened = atomic_file(path, private=True)
    with opened as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            sources=_bytes(shown.sources).numpy(),
            originals=_bytes(shown.originals).numpy(),
            encodings=_bytes(shown.encodings).numpy(),
            reconstructions=_bytes(shown.reconstructions).numpy(),
            ssim=shown.ssim.numpy(),
        )


def _save_grid(path: Path, result: AttackResult) -> None:
    shown = ShownImages.concatenate(ALL_CLIENTS, result.scores.shown, COLUMNS)
    rows = [("private image", _bytes(shown.originals))]
    if result.attack_target.config.instahide.method != "none":
        rows.append(("its encoding", _bytes(shown.encodings)))
    label = "decoded image" if result.scores.target == "private" else "recovered"
    rows.append((label, _bytes(shown.reconstructions)))
    save_contact_sheet(path, rows, result.title, private=True)


def _save_recovered(path: Path, result: AttackResult) -> None:
    """Draw recovered images alone; no truth was recorded."""
    statistics = result.attack_target.statistics
    images = [
        statistics.restore(recovered.images[:COLUMNS].cpu().nan_to_num(0.0, 0.0, 0.0))
        for recovered in result.reconstruction.recovered
        if recovered.images is not None and len(recovered.images)
    ]
    if not images:
        return
    first = torch.cat(images)[:COLUMNS]
    rows = [
        ("recovered", _bytes(first)),
        ("its negative", _bytes(negative(first, statistics))),
    ]
    save_contact_sheet(path, rows, result.title, private=True)


def _save_rounds(path: Path, result: AttackResult) -> None:
    """Draw leakage beside accuracy, round by round."""
    figure = Figure(figsize=(7, 4), dpi=120)
    leakage = figure.subplots()
    lines: dict[str, dict[int, ImageSimilarity | None]] = {
        "against the private image": {
            number: scores.private for number, scores in result.by_round.items()
        },
        "against the encoding": {
            number: scores.encoding for number, scores in result.by_round.items()
        },
    }
    for label, by_round in lines.items():
        scored = {number: s for number, s in by_round.items() if s is not None}
        if scored:
            ssim = [similarity.attack.sign_ssim.mean for similarity in scored.values()]
            leakage.plot(list(scored), ssim, marker="o", label=label)
    leakage.set(xlabel="round", ylabel="SSIM of reconstructions", ylim=(-0.05, 1.05))
    accuracies = {
        number: accuracy
        for number, accuracy in result.attack_target.accuracies().items()
        if accuracy is not None
    }
    accuracy_axes = leakage.twinx()
    if accuracies:
        numbers, values = list(accuracies), list(accuracies.values())
        accuracy_axes.plot(
            numbers, values, color="gray", linestyle="--", label="accuracy"
        )
    accuracy_axes.set(ylabel="accuracy on clean test images", ylim=(-0.05, 1.05))
    figure.legend(loc="upper center", ncols=3, fontsize=8)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
