"""Guesses: the images and labels that a gradient-matching attack moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.matching.victims import Victims
from instahide_fl.errors import AttackError
from instahide_fl.rng import torch_seed
from instahide_fl.transcript.view import AdversaryView


@dataclass(frozen=True)
class Box:
    """Least and largest value that a normalised pixel can have, per channel.

    Attributes:
        low: f32[C,1,1].
        high: f32[C,1,1].
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, view: AdversaryView, device: torch.device) -> Box:
        """Return the range of what clients train on.

        A mixture lies in the range of what it mixes; random signs make it symmetric.
        """
        kinds = [view.statistics]
        if view.pool is not None and view.config.instahide.uses_pool:
            kinds.append(view.pool.statistics)
        ends = [
            [(end - mean) / std for mean, std in zip(one.mean, one.std, strict=True)]
            for one in kinds
            for end in (0.0, 1.0)
        ]
        values = torch.tensor(ends, device=device)
        low, high = values.amin(0), values.amax(0)
        if view.config.instahide.method == "instahide":
            high = torch.maximum(-low, high)
            low = -high
        return cls(low.view(-1, 1, 1), high.view(-1, 1, 1))

    def clamp_(self, images: Tensor) -> None:
        """Bring images f32[...,C,H,W] into the box, in place."""
        torch.clamp(images, self.low, self.high, out=images)


class GuessedLabels:
    """Labels of V problems with M images each: known, or to be found with the images.

    Unknown ones are softmax(logits) times a weight in (0, 1], because an encoding with
    public images in it has labels that sum to less than 1. Without such images the
    weight is 1.

    Args:
        victims: V of them, with or without known labels.
        view: of the adversary.
        start: standard normal, f32[V,M,K], for the unknown ones.
    """

    def __init__(self, victims: Victims, view: AdversaryView, start: Tensor) -> None:
        self._known = victims.soft_targets
        self._logits = start.requires_grad_()
        self._weight: Tensor | None = None
        if view.config.instahide.uses_pool:
            least = view.config.instahide.min_private_weight
            middle = torch.full_like(start[..., :1], (1 + least) / 2)
            self._weight = torch.logit(middle).requires_grad_()

    @property
    def moving(self) -> list[Tensor]:
        """What an optimizer has to move; nothing if the labels are known."""
        if self._known is not None:
            return []
        return [self._logits, *([] if self._weight is None else [self._weight])]

    def values(self) -> Tensor:
        """Return the labels as f32[V,M,K], differentiable where they are unknown."""
        if self._known is not None:
            return self._known
        labels = self._logits.softmax(-1)
        return labels if self._weight is None else labels * self._weight.sigmoid()


def repeat_victims(victims: Victims, times: int) -> Victims:
    """Return each victim several times in a row, for restarts."""
    if times == 1:
        return victims

    def repeat(array: Tensor) -> Tensor:
        return array.repeat_interleave(times, dim=0)

    return Victims(
        tuple(one for one in victims.observations for _ in range(times)),
        victims.model,
        victims.parameters
        if victims.shared
        else {name: repeat(array) for name, array in victims.parameters.items()},
        victims.shared,
        {name: repeat(array) for name, array in victims.updates.items()},
        victims.steps,
        None if victims.soft_targets is None else repeat(victims.soft_targets),
    )


def best_of_restarts(values: Tensor, losses: Tensor, restarts: int) -> Tensor:
    """Return each victim's restart with the smallest loss.

    Args:
        values: f32[V*R,...], restarts of a victim side by side.
        losses: f32[V*R].
        restarts: R.

    Returns:
        f32[V,...].
    """
    chosen = losses.view(-1, restarts).argmin(1)
    rows = torch.arange(len(chosen), device=chosen.device) * restarts + chosen
    return values[rows]


def starting_point(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Draw f32 standard normal numbers, on the CPU so that devices start alike."""
    generator = torch.Generator().manual_seed(
        torch_seed(int(rng.integers(2**62)), "attack")
    )
    return torch.randn(shape, generator=generator)


def check_updates(view: AdversaryView, attack: str) -> None:
    """Refuse a run without single updates.

    Raises:
        AttackError: the transcript holds none.
    """
    if not view.observations:
        raise AttackError(
            f"attack {attack}: the recorded rounds hold no single update of a client"
        )
