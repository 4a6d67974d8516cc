"""The guessed images and labels that an attack by gradient matching moves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.matching.victims import Victims
from instahide_fl.errors import AttackError
from instahide_fl.rng import torch_seed
from instahide_fl.transcript.view import AdversaryView


@dataclass(frozen=True)
class Box:
    """The range of a normalised pixel, by channel.

    Attributes:
        low: The smallest values, f32[C,1,1].
        high: The largest values, f32[C,1,1].
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, view: AdversaryView, device: torch.device) -> Box:
        """Return the range of the images that clients train on.

        A mixture lies in the range of what it mixes; random signs make it symmetric.
        """
        sources = [view.statistics]
        if view.pool is not None and view.config.instahide.uses_pool:
            sources.append(view.pool.statistics)
        bounds = [
            [
                (bound - mean) / std
                for mean, std in zip(statistics.mean, statistics.std, strict=True)
            ]
            for statistics in sources
            for bound in (0.0, 1.0)
        ]
        values = torch.tensor(bounds, device=device)  # [2 * sources, C]
        low, high = values.amin(0), values.amax(0)
        if view.config.instahide.method == "instahide":
            high = torch.maximum(-low, high)
            low = -high
        return cls(low.view(-1, 1, 1), high.view(-1, 1, 1))

    def clamp_(self, images: Tensor) -> None:
        """Bring images f32[...,C,H,W] into the box, in place."""
        torch.clamp(images, self.low, self.high, out=images)


class GuessedLabels:
    """The labels of V problems with M images each, known or optimised with the images.

    Unknown labels are softmax(logits) times a weight in (0, 1], because the labels of
    an encoding with public images sum to less than 1. Without public images the weight
    is 1.

    Args:
        victims: The V victims, with or without known labels.
        view: The adversary's view.
        start: The logits of unknown labels to start from, standard normal, f32[V,M,K].
    """

    def __init__(self, victims: Victims, view: AdversaryView, start: Tensor) -> None:
        self._known = victims.soft_targets
        self._logits = start.requires_grad_()
        self._weight: Tensor | None = None
        if view.config.instahide.uses_pool:
            lowest = view.config.instahide.min_private_weight
            # One weight for each image, from the middle of its range: [V,M,1].
            middle = torch.full_like(start[..., :1], (1 + lowest) / 2)
            self._weight = torch.logit(middle).requires_grad_()

    @property
    def moving(self) -> list[Tensor]:
        """The tensors that an optimizer has to move; none if the labels are known."""
        if self._known is not None:
            return []
        return [self._logits, *([] if self._weight is None else [self._weight])]

    def values(self) -> Tensor:
        """Return the labels f32[V,M,K]; unknown ones can be differentiated."""
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

    observations, soft_targets = victims.observations, victims.soft_targets
    return replace(
        victims,
        observations=tuple(o for o in observations for _ in range(times)),
        parameters=victims.parameters
        if victims.shared
        else {name: repeat(array) for name, array in victims.parameters.items()},
        updates={name: repeat(array) for name, array in victims.updates.items()},
        soft_targets=None if soft_targets is None else repeat(soft_targets),
    )


def best_of_restarts(values: Tensor, losses: Tensor, restarts: int) -> Tensor:
    """Return each victim's restart with the smallest loss.

    Args:
        values: The values to choose from, with the restarts of a victim next to each
            other, f32[V*R,...].
        losses: The losses of all restarts, f32[V*R].
        restarts: R, the number of restarts.

    Returns:
        The values of the best restarts, f32[V,...].
    """
    chosen = losses.view(-1, restarts).argmin(1)  # [V*R] -> [V,R] -> [V]
    rows = torch.arange(len(chosen), device=chosen.device) * restarts + chosen
    return values[rows]


def starting_point(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Draw standard normal f32 numbers on the CPU, so that all devices start alike."""
    generator = torch.Generator().manual_seed(
        torch_seed(int(rng.integers(2**62)), "attack")
    )
    return torch.randn(shape, generator=generator)


def check_updates(view: AdversaryView, attack: str) -> None:
    """Refuse a view without single updates.

    Raises:
        AttackError: the transcript holds none.
    """
    if not view.observations:
        raise AttackError(
            f"attack {attack}: the recorded rounds hold no single update of a client"
        )
