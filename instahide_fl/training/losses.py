"""Losses over soft targets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(logits: Tensor, soft_targets: Tensor) -> Tensor:
    """Return the batch mean of -sum_c soft_targets[c] * log softmax(logits)[c].

    Soft targets are used as they are: where public images take part of the weight, a
    row sums to less than 1 and its image counts for less. Values are therefore not
    comparable across k.

    Args:
        logits: The network's output, f32[B,K].
        soft_targets: The label distributions, f32[B,K], non-negative.

    Returns:
        f32 scalar.

    Example:
        >>> import torch
        >>> from instahide_fl import soft_cross_entropy
        >>> targets = torch.tensor([[0.7, 0.3]])
        >>> soft_cross_entropy(torch.zeros(1, 2), targets)  # ln 2
        tensor(0.6931)
    """
    return -(soft_targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
