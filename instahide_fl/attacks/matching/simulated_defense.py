"""The public transforms of an update, repeated on the update of a guess.

Client and server know the settings of a defence, so an adversary does not compare what
a client sent with what a guess computes, but with what it would have sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instahide_fl.config import DefenseConfig

SIGN_SOFTNESS = (
    0.5  # of a tensor's mean magnitude: smaller entries pass nearly linearly
)

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class SimulatedDefense:
    """The transforms that V guesses' updates pass before they are compared.

    Attributes:
        transforms: The names of the transforms to repeat, in the client's order.
        prune_share: The share of each tensor's entries that was pruned.
        clip_norm: The L2 norm that updates were clipped to.
        noisy: Whether noise was added, which hides which entries were pruned.
    """

    transforms: tuple[str, ...]
    prune_share: float
    clip_norm: float
    noisy: bool = False

    @classmethod
    def of(cls, defense: DefenseConfig, clients: int) -> SimulatedDefense:
        """Return what can be repeated of a defence.

        In a sum of clients, entries that none of them sent can be told; the sign and
        the norm of each client's update cannot.

        Args:
            defense: The run's settings.
            clients: The number of clients whose updates are in the observed one.
        """
        repeatable = ("prune",) if clients > 1 else ("prune", "sign", "clip")
        names = defense.transform_names
        noisy = "prune" in names and "noise" in names[names.index("prune") :]
        return cls(
            transforms=tuple(name for name in names if name in repeatable),
            prune_share=defense.prune_share,
            clip_norm=defense.clip_norm,
            noisy=noisy and clients == 1,
        )

    @property
    def prunes(self) -> bool:
        """Whether only the entries that were sent are compared."""
        return "prune" in self.transforms

    @property
    def takes_signs(self) -> bool:
        """Whether clients sent signs."""
        return "sign" in self.transforms

    def sent_alone(self, observed: Arrays) -> Arrays:
        """Set to zero what a client did not send.

        Behind noise these are taken to be all but the entries of largest magnitude, as
        many as pruning leaves.

        Args:
            observed: The observed updates by parameter name, f32[V,...].
        """
        if not (self.prunes and self.noisy):
            return observed
        return {name: self._largest(array) for name, array in observed.items()}

    def _largest(self, array: Tensor) -> Tensor:
        magnitude = array.abs().flatten(1)  # [V,...] -> [V,D]
        num_pruned = math.floor(self.prune_share * magnitude.shape[1])
        if num_pruned == 0:
            return array
        threshold = magnitude.kthvalue(num_pruned, dim=1, keepdim=True).values
        sent = (magnitude > threshold).view(array.shape)
        return array * sent

    def apply(self, updates: Arrays, observed: Arrays) -> Arrays:
        """Return what clients would have sent, so that it can be differentiated.

        Args:
            updates: The updates of guesses by parameter name, f32[V,...].
            observed: The observed updates, 0 where an entry was not sent (pruned).
        """
        for name in self.transforms:
            if name == "prune":
                updates = {key: a * (observed[key] != 0) for key, a in updates.items()}
            elif name == "sign":
                updates = {key: _soft_sign(array) for key, array in updates.items()}
            else:
                updates = _clip(updates, self.clip_norm)
        return updates


def _soft_sign(array: Tensor) -> Tensor:
    """Return the sign of each entry times the mean magnitude, smooth around 0.

    Args:
        array: A parameter's updates, f32[V,...].
    """
    magnitude = array.abs().flatten(1).mean(1)  # [V]
    mean = magnitude.view(-1, *[1] * (array.ndim - 1)).clamp_min(1e-30)
    return torch.tanh(array / (SIGN_SOFTNESS * mean)) * mean


def _clip(updates: Arrays, max_norm: float) -> Arrays:
    """Scale each guess's update down to an L2 norm over all parameters."""
    squares = [array.flatten(1).square().sum(1) for array in updates.values()]
    norms = torch.stack(squares).sum(0).sqrt()  # [V]
    factors = max_norm / norms.clamp_min(max_norm)
    return {
        name: array * factors.view(-1, *[1] * (array.ndim - 1))
        for name, array in updates.items()
    }
