"""The picture of a search for public images: those in the encodings, and matches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instahide_fl.pictures.contact_sheet import save_contact_sheet

if TYPE_CHECKING:
    from instahide_fl.audit.attack_result import AttackResult

MAX_MATCHES = 5  # drawn for each encoding
MAX_TRUE = 4  # public images drawn of each encoding
GREEN = torch.tensor([0, 220, 0], dtype=torch.uint8)


def save_component_picture(path: Path, result: AttackResult) -> None:
    """Draw encodings, the public images in them and the best matches.

    A match that is in the encoding has a green frame.

    Args:
        path: The PNG file.
        result: The result of a search of the pool.

    Raises:
        OutputError: the file cannot be written.
        PoolError: the pool is gone.
    """
    shown, attack_target = result.scores.shown_components, result.attack_target
    pool = attack_target.view(result.threat_model).pool
    if shown is None or pool is None:
        return
    encodings = attack_target.statistics.restore(shown.encodings)
    rows = [("encoding", _colours((encodings.clamp(0, 1) * 255).to(torch.uint8)))]
    for number, index in enumerate(shown.true.T[:MAX_TRUE], start=1):
        label = f"public image in it, weight no. {number}"
        rows.append((label, _colours(pool.images[index])))
    for number, index in enumerate(shown.ranked.T[:MAX_MATCHES], start=1):
        right = (shown.true == index[:, None]).any(dim=1)
        rows.append((f"match {number}", _framed(pool.images[index], right)))
    save_contact_sheet(path, rows, result.title)


def _colours(images: Tensor) -> Tensor:
    return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)


def _framed(images: Tensor, right: Tensor) -> Tensor:
    """Return colour images with a green frame around those that are right, bool[n]."""
    framed = _colours(images).clone()
    width = max(1, images.shape[-1] // 16)
    edge = torch.ones(images.shape[-2:], dtype=torch.bool)
    edge[width:-width, width:-width] = False
    green = torch.where(edge, GREEN[:, None, None], framed)  # [n,3,H,W]
    return torch.where(right[:, None, None, None], green, framed)
