"""Rules that withstand some bad updates.

They compare single updates with each other, so a sum is of no use to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from instahide_fl.config import ServerConfig
from instahide_fl.errors import RoundError
from instahide_fl.types import ClientUpdate

RobustRule: TypeAlias = Callable[[Sequence[ClientUpdate]], dict[str, Tensor]]


def robust_rule(config: ServerConfig) -> RobustRule | None:
    """Return the robust rule that `server.aggregation` names, or None for a mean."""
    rules: dict[str, RobustRule] = {
        "median": median,
        "trimmed-mean": partial(trimmed_mean, share=config.trim_share),
        "krum": partial(krum, malicious=config.malicious_clients),
    }
    return rules.get(config.aggregation)


def median(updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    """Take the median of every coordinate.

    Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018 (arXiv:1803.01498).
    All updates count the same, whatever their numbers of images.

    Args:
        updates: One or more updates, all with the same names and shapes.

    Returns:
        The median by parameter name.
    """
    return {
        name: torch.from_numpy(np.asarray(np.median(stacked, axis=0)))
        for name, stacked in _stacked(updates)
    }


def trimmed_mean(updates: Sequence[ClientUpdate], share: float) -> dict[str, Tensor]:
    """Average every coordinate without its smallest and largest values.

    Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018 (arXiv:1803.01498).

    Args:
        updates: One or more updates, all with the same names and shapes.
        share: The part of the values to drop at each end, in [0, 0.5), rounded down.

    Returns:
        The mean by parameter name.
    """
    return {
        name: torch.from_numpy(np.asarray(stats.trim_mean(stacked, share, axis=0)))
        for name, stacked in _stacked(updates)
    }


def krum(updates: Sequence[ClientUpdate], malicious: int) -> dict[str, Tensor]:
    """Take the one update that is closest to its neighbours.

    Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017
    (arXiv:1703.02757): an update's score is the sum of its squared distances to the
    n - f - 2 nearest others; the lowest score wins, the earlier client if two tie.

    Args:
        updates: n updates, all with the same names and shapes.
        malicious: f, the number of bad updates to withstand.

    Returns:
        The chosen update's arrays, copied.

    Raises:
        RoundError: n is below 2f + 3 (too many clients of the cohort failed).
    """
    if len(updates) < 2 * malicious + 3:
        raise RoundError(
            f"krum against {malicious} bad updates (server.malicious-clients) needs "
            f"{2 * malicious + 3} updates, {len(updates)} came"
        )
    distances = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for _, stacked in _stacked(updates):
        flat = torch.from_numpy(stacked).flatten(1)  # [n,...] -> [n,D]
        # The fast way, by products of the rows, loses small distances.
        exact = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
        distances += exact.double().square()
    # From 1 on: in each row the smallest distance is the update's to itself.
    nearest = distances.sort(dim=1).values[:, 1 : len(updates) - malicious - 1]
    chosen = int(nearest.sum(dim=1).argmin())
    return {n: a.cpu().float().clone() for n, a in updates[chosen].arrays.items()}


def _stacked(
    updates: Sequence[ClientUpdate],
) -> list[tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]:
    """Return each array of all updates, stacked to f32[n,...], with its name."""
    return [
        (
            name,
            np.stack([update.arrays[name].cpu().float().numpy() for update in updates]),
        )
        for name in updates[0].arrays
    ]
