"""An exponential moving average of a model over its training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class MovingAverage:
    """Averages arrays over steps; older ones weigh less by a factor for each step.

    After t updates the i-th has the weight decay^(t - i), and weights sum to 1. So the
    random start of a network is no part of the average (as the moments of Adam are
    corrected for their start at zero).

    Args:
        arrays: The arrays before the first step by name, which are copied.
        decay: The factor, in [0, 1).
    """

    def __init__(self, arrays: Mapping[str, Tensor], decay: float) -> None:
        self._arrays = {name: array.clone() for name, array in arrays.items()}
        self._decay = decay
        self._updates = torch.zeros((), dtype=torch.int64)

    @property
    def arrays(self) -> dict[str, Tensor]:
        """The average by name, or the first arrays before any update."""
        return dict(self._arrays)

    def update(self, arrays: Mapping[str, Tensor]) -> None:
        """Take in the arrays after a step.

        Args:
            arrays: The arrays by name.
        """
        self._updates += 1
        weight = (1 - self._decay) / (1 - self._decay ** self._updates.item())
        for name, average in self._arrays.items():
            average.lerp_(arrays[name], weight)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that make up the average, by name, to read and write."""
        averages = {f"average/{name}": array for name, array in self._arrays.items()}
        return {**averages, "average-updates": self._updates}
