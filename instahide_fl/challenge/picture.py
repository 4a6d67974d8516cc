"""A picture of a scored decryption."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from instahide_fl.pictures.contact_sheet import save_contact_sheet
from instahide_fl.transcript.truth import ClientTruth
from instahide_fl.types import ChannelStatistics

SHOWN = 12  # encodings that are drawn
MAX_PRIVATE = 4  # private images drawn for each encoding


def save_score_picture(
    path: Path,
    decryption: Tensor,
    truth: ClientTruth,
    statistics: ChannelStatistics,
    title: str,
) -> None:
    """Draw the first encodings, not the best, with what they hide and what came out.

    Args:
        path: The PNG file.
        decryption: f32[E,C,H,W] in [0, 1].
        truth: Originals and keys.
        statistics: Constants that images are normalised with.
        title: The text above all rows.

    Raises:
        OutputError: the file cannot be written.
    """
    components = truth.components[:SHOWN]
    weights = truth.key.coefficients[:SHOWN, : components.shape[1]]
    heaviest_first = components.gather(1, weights.argsort(dim=1, descending=True))
    rows = [
        (f"private image {number}", truth.images[column])
        for number, column in enumerate(heaviest_first.T[:MAX_PRIVATE], start=1)
    ]
    encodings = statistics.restore(truth.encodings[:SHOWN])
    rows.append(("encoding", _bytes(encodings)))
    rows.append(("decryption", _bytes(decryption[:SHOWN])))
    save_contact_sheet(path, rows, title)


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
