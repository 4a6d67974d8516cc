"""Scores of membership from losses and cosines: higher for likelier members."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MAX_SCORE = 30.0
"""Deviations that a single round counts for, at most."""
MIN_CLIENTS = 3
"""Clients of a round from which the others of each give a deviation."""


def against_other_clients(values: Tensor) -> Tensor:
    """Return by how much each client's value exceeds those of the others.

    FedMIA (Zhu et al., CVPR 2025, arXiv:2402.06289): updates of clients that do not
    hold an image are the null distribution, a normal one, for the client that may.
    Their mean and variance are estimated from few clients, so the distance follows
    Student's distribution with C - 2 degrees of freedom; it is returned as the normal
    score of the same probability, which can be averaged over rounds.

    Args:
        values: f64[C,N], what is measured of C clients, at least 3, for N images.

    Returns:
        f64[C,N], standard normal where no client stands out.
    """
    # Imported here: only this attack needs it, and it takes a while.
    from scipy.stats import norm, t

    count = len(values)
    centred = values - values.mean(0)
    # Means over the C-1 others of each client.
    mean = -centred / (count - 1)
    squares = ((centred**2).sum(0) - centred**2) / (count - 1)
    variance = (squares - mean**2).clamp_min(0) * (count - 1) / (count - 2)
    deviation = (variance * count / (count - 1)).sqrt()
    tiny = torch.finfo(values.dtype).tiny
    distance = ((centred - mean) / deviation.clamp_min(tiny)).numpy()
    # By the nearer tail: the other one rounds to 1.
    score = np.abs(norm.isf(t.sf(np.abs(distance), count - 2)))
    return torch.from_numpy(np.sign(distance) * np.minimum(score, MAX_SCORE))


def mean_by_client(
    rounds: list[tuple[tuple[str, ...], Tensor]],
) -> tuple[tuple[str, ...], Tensor]:
    """Average what is known of each client over the rounds that it took part in.

    Args:
        rounds: For each round its clients and f64[C,N], a value for each client and
            image; at least one round.

    Returns:
        All clients in the order of their first round, and f64[C,N].
    """
    clients = tuple(dict.fromkeys(name for names, _ in rounds for name in names))
    total = torch.zeros(len(clients), rounds[0][1].shape[1], dtype=torch.float64)
    times = torch.zeros(len(clients), 1, dtype=torch.float64)
    for names, values in rounds:
        rows = torch.tensor([clients.index(name) for name in names])
        total.index_add_(0, rows, values.double())
        times.index_add_(0, rows, torch.ones(len(rows), 1, dtype=torch.float64))
    return clients, total / times
