"""Inverting Gradients: find images whose gradient points in the observed direction.

Geiping et al., "Inverting Gradients: How easy is it to break privacy in federated
learning?", NeurIPS 2020. All victims and restarts are attacked side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    Recovered,
    ignore_progress,
)
from instahide_fl.attacks.batch_statistics import BatchStatistics
from instahide_fl.attacks.layers.recovered_labels import with_recovered_labels
from instahide_fl.attacks.matching.adaptation import Adaptation
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
from instahide_fl.attacks.matching.simulated_defense import SimulatedDefense
from instahide_fl.attacks.matching.variation_weight import (
    DEFAULT_WEIGHT,
    VariationWeight,
    choose_weight,
)
from instahide_fl.attacks.matching.victims import (
    Victims,
    alike,
    attack_device,
    check_batches,
    repeats_images,
    stack_victims,
    training_network,
)
from instahide_fl.config import Scalar
from instahide_fl.config.base import Count, CountOrZero
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView, Observation

MILESTONES = (3 / 8, 5 / 8, 7 / 8)  # of the iterations, after which the step shrinks
SIDE_BY_SIDE = 32  # victims times restarts, at most
MAX_MEMORY = 4 * 10**9  # bytes that these may take


class InvertingGradients(Attack):
    """Match gradients by cosine distance, with total variation and signed Adam."""

    name: ClassVar[str] = "inverting_gradients"
    summary: ClassVar[str] = (
        "encodings, by moving images until their gradient points the way observed"
    )
    on_aggregates: ClassVar[bool] = True
    cost: ClassVar[str] = "seconds to minutes a victim; a GPU helps large networks"
    source: ClassVar[str] = "Geiping et al., NeurIPS 2020, arXiv:2003.14053"
    quick: ClassVar[Mapping[str, Scalar]] = {"iterations": 300}

    iterations: Count = 1000
    """The number of steps of the optimizer; the paper takes 4,800 to 24,000."""
    restarts: Count = 1
    """The number of starting points of each victim; the best match is returned."""
    step_size: Annotated[float, Field(gt=0)] = 0.1
    """The step size of Adam, in normalised pixel values; it is divided by 10 after 3/8,
    5/8 and 7/8 of the iterations."""
    total_variation: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """The weight of the total variation of x, or of |x| where signs are flipped; it
    shrinks with the step size. `auto`: 0.01, or where a defence changes updates, the
    weight that serves best on public images behind the same defence."""
    batch_statistics: Annotated[float, Field(ge=0)] = 0.0
    """The weight of the BatchNorm prior ("See through Gradients", Yin et al., CVPR
    2021): the distance of the guess's statistics from those that running statistics
    give away."""
    distance: Literal["cosine", "squared"] = "cosine"
    """The distance between gradients that is minimised."""
    signed: bool = True
    """Whether Adam is given only the sign of each pixel's gradient."""
    labels: Literal["auto", "joint"] = "auto"
    """`auto`: the labels that the threat model gives, or at batch 1 those recovered
    from the last layer; others are optimised with the images. `joint`: all labels are
    optimised with the images."""
    patience: CountOrZero = 0
    """The number of iterations without a better match after which all stop; 0 never
    stops early."""
    adaptive: bool = True
    """Whether the attack makes use of the settings of the run's defence, which are
    public; false attacks as if there were none."""
    local_steps: Literal["unrolled", "one-step"] = "unrolled"
    """How updates of several local steps are matched (mode update): `unrolled` repeats
    the steps, `one-step` takes the update for a gradient of all images, which is
    faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device to compute on."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Attack every observed update; see `Attack.reconstruct`."""
        check_updates(view, self.name)
        if self.batch_statistics:
            view.require(self.name, {Knowledge.BUFFERS})
        # The trials draw from a stream of their own: a stated weight has none.
        weight = self._choose_weight(view, rng.spawn(1)[0])
        attack = self.model_copy(update={"total_variation": weight.value})
        recovered, victims = attack._match(view, rng, progress)
        adaptation = Adaptation.of(
            self.adaptive, view.config.defense, victims, weight
        ).to_json()
        return Reconstruction("encoding", tuple(recovered), adaptation=adaptation)

    def _choose_weight(
        self, view: AdversaryView, rng: np.random.Generator
    ) -> VariationWeight:
        """Return the weight of the total variation."""
        if self.total_variation != "auto":
            return VariationWeight(self.total_variation, "setting")
        if not self.adaptive:
            return VariationWeight(DEFAULT_WEIGHT, "default")

        def attack(
            public: AdversaryView, weight: float, iterations: int
        ) -> Sequence[Recovered]:
            changes = {
                "total_variation": weight,
                "iterations": iterations,
                "restarts": 1,
                "batch_statistics": 0.0,
            }
            trial = self.model_copy(update=changes)
            return trial._match(public, rng, ignore_progress)[0]

        return choose_weight(attack, view, self.iterations, rng)

    def _match(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> tuple[list[Recovered], list[Victims]]:
        """Return the best match of each observed update, and the stacks of victims."""
        if self.labels == "auto":
            view = with_recovered_labels(view, self.adaptive)
        device = attack_device(self.device)
        model = training_network(view.config, view.image_shape, view.num_classes)
        check_batches(model, view)
        chunks = [
            chunk
            for group in alike(view.observations)
            for chunk in _chunks(
                group, self.restarts, memory_of_one(model, view.image_shape, group[0])
            )
        ]
        total = self.iterations * len(chunks)
        recovered: list[Recovered] = []
        stacks: list[Victims] = []
        for number, chunk in enumerate(chunks):
            victims = stack_victims(view, model, chunk, device, self.labels == "auto")
            victims = self._with_local_steps(victims, view)
            if self.adaptive:
                defense = SimulatedDefense.of(view.config.defense, chunk[0].clients)
                victims = victims.behind(defense)
            step_done = partial(_report_step, progress, number * self.iterations, total)
            recovered += self._invert(victims, view, rng, step_done)
            stacks.append(victims)
        return recovered, stacks

    def _with_local_steps(self, victims: Victims, view: AdversaryView) -> Victims:
        """Return victims whose local steps are repeated as the settings say."""
        if victims.steps.kind == "gradient":
            return victims
        if repeats_images(view):
            victims = victims.with_shared_images(view.config.train.local_epochs)
        return victims.as_one_step() if self.local_steps == "one-step" else victims

    def _invert(
        self,
        victims: Victims,
        view: AdversaryView,
        rng: np.random.Generator,
        step_done: Callable[[int], None],
    ) -> list[Recovered]:
        """Return the best match of each victim over all restarts."""
        repeated = repeat_victims(victims, self.restarts)
        images, labels = _start(repeated, view, rng)
        best = self._descend(repeated, view, images, labels, step_done, rng)
        pixels = best_of_restarts(best.images, best.losses, self.restarts).cpu()
        losses = best_of_restarts(best.losses, best.losses, self.restarts).cpu()
        return [
            Recovered(
                observation.client,
                observation.round,
                images=pixels[i],
                diagnostics={"distance": losses[i].item()},
            )
            for i, observation in enumerate(victims.observations)
        ]

    def _descend(
        self,
        victims: Victims,
        view: AdversaryView,
        images: Tensor,
        labels: GuessedLabels,
        step_done: Callable[[int], None],
        rng: np.random.Generator,
    ) -> _Best:
        """Move all guesses, and return the best match of each.

        The orders of images in local epochs are drawn anew in each iteration, so that
        the distance is minimised on average over orders.
        """
        box = Box.of(view, victims.device)
        prior = _Prior.of(self, victims, view)
        distance_of = update_distance(victims, self.distance)
        moving = [images, *labels.moving]
        optimizer = torch.optim.Adam(moving, lr=self.step_size)
        milestones = {int(share * self.iterations) for share in MILESTONES}
        best = _Best.before_any(images)
        for step in range(self.iterations):
            if victims.steps.has_orders:
                ordered = replace(victims, steps=victims.steps.reordered(rng))
                distance_of = update_distance(ordered, self.distance)
            distance = distance_of(images, labels.values())
            # The prior guides the search. At its full weight it would prevent an exact
            # match at the end, so it shrinks with the step size.
            shrinkage = optimizer.param_groups[0]["lr"] / self.step_size
            loss = distance + shrinkage * prior(images)
            gradients = torch.autograd.grad(loss.sum(), moving)
            best.update(distance.detach(), images, step)
            for value, gradient in zip(moving, gradients, strict=True):
                only_sign = self.signed and value is images
                value.grad = gradient.sign() if only_sign else gradient
            if step in milestones:
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
    """A measure of how unlikely images are, regardless of gradients.

    Attributes:
        settings: The attack, with the weights of both terms.
        victims: The V victims.
        hidden_signs: Whether signs were flipped, so that only |x| is smooth.
        statistics: The BatchNorm statistics of the victims' batches; None if they are
            not used.
    """

    settings: InvertingGradients
    victims: Victims
    hidden_signs: bool
    statistics: LayerStatistics | None

    @classmethod
    def of(
        cls, settings: InvertingGradients, victims: Victims, view: AdversaryView
    ) -> _Prior:
        statistics = None
        if settings.batch_statistics:
            statistics = _observed_statistics(victims, view)
        hidden_signs = view.config.instahide.method == "instahide"
        return cls(settings, victims, hidden_signs, statistics)

    def __call__(self, images: Tensor) -> Tensor:
        """Return how unlikely the guesses f32[V,M,C,H,W] are, f32[V]."""
        variation = total_variation(images, self.hidden_signs)
        weight = self.settings.total_variation
        assert weight != "auto", "the weight was chosen before"
        unlikely = weight * variation
        if self.statistics is None:
            return unlikely
        guessed = layer_statistics(self.victims, images)
        distance = statistics_distance(guessed, self.statistics)
        return unlikely + self.settings.batch_statistics * distance


def _observed_statistics(victims: Victims, view: AdversaryView) -> LayerStatistics:
    """Return the statistics of the victims' batches, from running statistics.

    Raises:
        AttackError: there are no running statistics, or they average several batches.
    """
    if len(victims.steps.batch_sizes) > 1 or view.config.train.local_batches > 1:
        raise AttackError(
            "inverting_gradients.batch-statistics: running statistics average several "
            "batches here, and single ones are needed; set it to 0"
        )
    of_victims = replace(view, observations=victims.observations)
    reconstruction = BatchStatistics().reconstruct(
        of_victims, np.random.default_rng(0), ignore_progress
    )
    batches = [recovered.statistics for recovered in reconstruction.recovered]
    names = [name for name in batches[0] if name.endswith(".mean")]
    layers = [name.removesuffix(".mean") for name in names]

    def stacked(kind: str) -> tuple[Tensor, ...]:
        return tuple(
            torch.stack([batch[f"{layer}.{kind}"] for batch in batches]).to(
                victims.device
            )
            for layer in layers
        )

    return LayerStatistics(stacked("mean"), stacked("variance"))


@dataclass
class _Best:
    """The best match of each problem so far.

    Attributes:
        images: The images, f32[V,M,C,H,W].
        losses: The distances of their updates, f32[V].
        latest: The last step in which the match of any problem improved by more than
            1 in 1000.
    """

    images: Tensor
    losses: Tensor
    latest: int = 0

    @classmethod
    def before_any(cls, images: Tensor) -> _Best:
        worst = torch.full((len(images),), float("inf"), device=images.device)
        return cls(images.detach().clone(), worst)

    def update(self, losses: Tensor, images: Tensor, step: int) -> None:
        better = losses < self.losses
        if bool((losses < 0.999 * self.losses).any()):
            self.latest = step
        chosen = better.view(-1, 1, 1, 1, 1)  # [V] -> [V,1,1,1,1]
        self.images = torch.where(chosen, images.detach(), self.images)
        self.losses = torch.where(better, losses, self.losses)


def _report_step(
    progress: ProgressCallback, before: int, total: int, step: int
) -> None:
    progress(before + step, total)


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
    """Divide victims into chunks that fit into memory.

    Args:
        group: Victims that can be stacked.
        restarts: The number of restarts of each victim.
        memory: The bytes that one restart of one victim takes.
    """
    problems = min(SIDE_BY_SIDE, MAX_MEMORY // memory)
    size = max(1, problems // restarts)
    return [group[at : at + size] for at in range(0, len(group), size)]
