"""Inverting Gradients: images whose gradient points the way that the observed one does.

Geiping et al., "Inverting Gradients: How easy is it to break privacy in federated
learning?", NeurIPS 2020. All victims and restarts are attacked side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from instahide_fl.attacks.base import (
    Advance,
    Attack,
    Reconstruction,
    Recovered,
    silent,
)
from instahide_fl.attacks.batch_statistics import BatchStatistics
from instahide_fl.attacks.layers.recovered_labels import with_recovered_labels
from instahide_fl.attacks.matching.gradient_matching import (
    LayerStatistics,
    layer_statistics,
    statistics_distance,
    total_variation,
)
from instahide_fl.attacks.matching.guess import (
    Box,
    GuessedLabels,
    best_of_restarts,
    check_updates,
    repeat_victims,
    starting_point,
)
from instahide_fl.attacks.matching.memory import memory_of_one
from instahide_fl.attacks.matching.side_by_side import update_distance
from instahide_fl.attacks.matching.victims import (
    Victims,
    alike,
    attack_device,
    check_batches,
    stack_victims,
    training_network,
)
from instahide_fl.config.base import Count, CountOrZero
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView, Observation

MILESTONES = (3 / 8, 5 / 8, 7 / 8)  # of the iterations, after which the step shrinks
SIDE_BY_SIDE = 32  # victims times restarts
MEMORY = 4 * 10**9  # bytes that they may take


class InvertingGradients(Attack):
    """Cosine distance, total variation, signed Adam, a box, restarts."""

    section = "inverting_gradients"

    name: ClassVar[str] = "inverting_gradients"
    summary: ClassVar[str] = (
        "encodings, by moving images until their gradient points the way observed"
    )
    on_aggregates: ClassVar[bool] = True
    cost: ClassVar[str] = "seconds to minutes a victim; a GPU helps large networks"
    source: ClassVar[str] = "Geiping et al., NeurIPS 2020, arXiv:2003.14053"

    iterations: Count = 1000
    """Steps of the optimizer; the paper takes 4,800 to 24,000."""
    restarts: Count = 1
    """Starting points of each victim; the one that matches best is returned."""
    step_size: Annotated[float, Field(gt=0)] = 0.1
    """Of Adam, in normalised pixel values; a tenth after 3/8, 5/8 and 7/8."""
    total_variation: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the smoothness prior, of |x| where signs were flipped; it shrinks with
    the step."""
    batch_statistics: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the BatchNorm prior ("See through Gradients", Yin et al., CVPR 2021):
    how far the guess's statistics are from those that running statistics give away."""
    distance: Literal["cosine", "squared"] = "cosine"
    """What is made small between the gradients."""
    signed: bool = True
    """Whether Adam is given only the sign of each pixel's gradient."""
    labels: Literal["auto", "joint"] = "auto"
    """`auto`: known ones where the threat model gives them, recovered ones at batch 1,
    else found with the images. `joint`: always found with the images."""
    patience: CountOrZero = 0
    """Iterations without a better match after which all stop; 0 never stops early."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, advance: Advance
    ) -> Reconstruction:
        """Attack every observed update; see `Attack.reconstruct`."""
        check_updates(view, self.name)
        if self.batch_statistics:
            view.require(self.name, {Knowledge.BUFFERS})
        if self.labels == "auto":
            view = with_recovered_labels(view)
        device, model = (
            attack_device(self.device),
            training_network(view.config, view.image_shape, view.num_classes),
        )
        check_batches(model, view)
        chunks = [
            part
            for group in alike(view.observations)
            for part in _chunks(
                group, self.restarts, memory_of_one(model, view.image_shape, group[0])
            )
        ]
        total = self.iterations * len(chunks)
        recovered: list[Recovered] = []
        for number, part in enumerate(chunks):
            victims = stack_victims(view, model, part, device, self.labels == "auto")
            shown = partial(_shifted, advance, number * self.iterations, total)
            recovered += self._invert(victims, view, rng, shown)
        return Reconstruction("encoding", tuple(recovered))

    def _invert(
        self,
        victims: Victims,
        view: AdversaryView,
        rng: np.random.Generator,
        step_done: Callable[[int], None],
    ) -> list[Recovered]:
        many = repeat_victims(victims, self.restarts)
        images, labels = _start(many, view, rng)
        found = self._descend(many, view, images, labels, step_done)
        pixels, losses = (
            best_of_restarts(one, found.losses, self.restarts).cpu()
            for one in (found.images, found.losses)
        )
        return [
            Recovered(
                one.client,
                one.round,
                images=pixels[i],
                diagnostics={"distance": losses[i].item()},
            )
            for i, one in enumerate(victims.observations)
        ]

    def _descend(
        self,
        victims: Victims,
        view: AdversaryView,
        images: Tensor,
        labels: GuessedLabels,
        step_done: Callable[[int], None],
    ) -> _Best:
        """Move all guesses, and keep the best match of each."""
        box = Box.of(view, victims.device)
        prior = _Prior.of(self, victims, view)
        distance_of = update_distance(victims, self.distance)
        moving = [images, *labels.moving]
        optimizer = torch.optim.Adam(moving, lr=self.step_size)
        marks = {int(share * self.iterations) for share in MILESTONES}
        best = _Best.before_any(images)
        for step in range(self.iterations):
            distance = distance_of(images, labels.values())
            # It guides the search, and would keep the end from matching exactly.
            shrunk = optimizer.param_groups[0]["lr"] / self.step_size
            loss = distance + shrunk * prior(images)
            slopes = torch.autograd.grad(loss.sum(), moving)
            best.keep(distance.detach(), images, step)
            for value, slope in zip(moving, slopes, strict=True):
                value.grad = slope.sign() if self.signed and value is images else slope
            if step in marks:
                optimizer.param_groups[0]["lr"] *= 0.1
            optimizer.step()
            with torch.no_grad():
                box.clamp_(images)
            step_done(step + 1)
            if self.patience and step - best.latest >= self.patience:
                break
        return best


@dataclass(frozen=True)
class _Prior:
    """What is known of images before any gradient is seen.

    Attributes:
        settings: of the attack: the weights.
        victims: V of them.
        hidden_signs: whether signs were flipped, so that only |x| is smooth.
        statistics: of the victims' batches, or None if they are not used.
    """

    settings: InvertingGradients
    victims: Victims
    hidden_signs: bool
    statistics: LayerStatistics | None

    @classmethod
    def of(
        cls, settings: InvertingGradients, victims: Victims, view: AdversaryView
    ) -> _Prior:
        known = None
        if settings.batch_statistics:
            known = _known_statistics(victims, view)
        signs = view.config.instahide.method == "instahide"
        return cls(settings, victims, signs, known)

    def __call__(self, images: Tensor) -> Tensor:
        """Return how unlikely guesses are, as f32[V]."""
        variation = total_variation(images, self.hidden_signs)
        unlikely = self.settings.total_variation * variation
        if self.statistics is None:
            return unlikely
        found = layer_statistics(self.victims, images)
        off = statistics_distance(found, self.statistics)
        return unlikely + self.settings.batch_statistics * off


def _known_statistics(victims: Victims, view: AdversaryView) -> LayerStatistics:
    """Return what running statistics tell about the victims' batches.

    Raises:
        AttackError: there are none, or several batches went into them.
    """
    if len(victims.steps.batch_sizes) > 1 or view.config.train.local_batches > 1:
        raise AttackError(
            "inverting_gradients.batch-statistics: running statistics average several "
            "batches here, and single ones are needed; set it to 0"
        )
    own = replace(view, observations=victims.observations)
    found = BatchStatistics().reconstruct(own, np.random.default_rng(0), silent)
    every = [one.statistics for one in found.recovered]
    layers = [name.removesuffix(".mean") for name in every[0] if name.endswith(".mean")]

    def stacked(kind: str) -> tuple[Tensor, ...]:
        return tuple(
            torch.stack([one[f"{layer}.{kind}"] for one in every]).to(victims.device)
            for layer in layers
        )

    return LayerStatistics(stacked("mean"), stacked("variance"))


@dataclass
class _Best:
    """The best match of each problem so far.

    Attributes:
        images: f32[V,M,C,H,W].
        losses: f32[V].
        latest: step in which any problem's match last became better by 1 in 1000.
    """

    images: Tensor
    losses: Tensor
    latest: int = 0

    @classmethod
    def before_any(cls, images: Tensor) -> _Best:
        worst = torch.full((len(images),), float("inf"), device=images.device)
        return cls(images.detach().clone(), worst)

    def keep(self, losses: Tensor, images: Tensor, step: int) -> None:
        better = losses < self.losses
        if bool((losses < 0.999 * self.losses).any()):
            self.latest = step
        chosen = better.view(-1, *[1] * (images.dim() - 1))
        self.images = torch.where(chosen, images.detach(), self.images)
        self.losses = torch.where(better, losses, self.losses)


def _shifted(advance: Advance, before: int, total: int, step: int) -> None:
    advance(before + step, total)


def _start(
    victims: Victims, view: AdversaryView, rng: np.random.Generator
) -> tuple[Tensor, GuessedLabels]:
    count, images = len(victims), victims.steps.images
    pixels = starting_point((count, images, *view.image_shape), rng)
    logits = starting_point((count, images, view.num_classes), rng)
    device = victims.device
    labels = GuessedLabels(victims, view, logits.to(device))
    return pixels.to(device).requires_grad_(), labels


def _chunks(
    group: tuple[Observation, ...], restarts: int, memory: int
) -> list[tuple[Observation, ...]]:
    """Cut victims into chunks, of problems that take so many bytes each."""
    problems = min(SIDE_BY_SIDE, MEMORY // memory)
    size = max(1, problems // restarts)
    return [group[at : at + size] for at in range(0, len(group), size)]
