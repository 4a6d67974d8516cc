"""Matching reconstructions to originals one-to-one, by similarity.

A reconstruction that resembles all originals a little is then counted once. Matching
alone lifts the mean similarity of noise, so a baseline must go through it too.
"""

from __future__ import annotations

import torch
from torch import Tensor


def match_one_to_one(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Pair rows with columns so that the sum of similarities is greatest.

    Args:
        similarity: f64[M,N], finite; M and N may differ.

    Returns:
        Rows i64[R] and columns i64[R], R = min(M, N), each at most once; rows ascend.
    """
    # Imported here: only the scorer needs it, and it takes a while.
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns)
