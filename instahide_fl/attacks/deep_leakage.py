"""Deep Leakage from Gradients: L-BFGS on the squared distance of gradients.

`dlg` finds images and labels together (Zhu et al., "Deep Leakage from Gradients",
NeurIPS 2019). `idlg` takes the label from the last layer first (Zhao et al., "iDLG:
Improved Deep Leakage from Gradients", 2020, arXiv:2001.02610).
"""

from __future__ import annotations

from dataclasses import replace
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
)
from instahide_fl.attacks.layers.recovered_labels import with_recovered_labels
from instahide_fl.attacks.matching.adaptation import Adaptation
from instahide_fl.attacks.matching.gradient_matching import (
    simulated_updates,
    squared_distance,
)
from instahide_fl.attacks.matching.guess import (
    GuessedLabels,
    check_updates,
    starting_point,
)
from instahide_fl.attacks.matching.simulated_defense import SimulatedDefense
from instahide_fl.attacks.matching.victims import (
    Victims,
    attack_device,
    check_batches,
    stack_victims,
    training_network,
)
from instahide_fl.config.base import Count
from instahide_fl.transcript.view import AdversaryView

INNER_STEPS = 20  # of L-BFGS in one iteration


class DeepLeakage(Attack):
    """Find images and labels together (DLG)."""

    name: ClassVar[str] = "dlg"
    summary: ClassVar[str] = (
        "encodings and labels whose gradient is the observed one, by L-BFGS"
    )
    on_aggregates: ClassVar[bool] = True
    cost: ClassVar[str] = "half a minute a client; small networks, smooth activations"
    source: ClassVar[str] = "Zhu et al., NeurIPS 2019, arXiv:1906.08935"

    by_default: ClassVar[bool] = False

    iterations: Count = 60
    """The number of calls of L-BFGS, each of at most 20 steps."""
    restarts: Count = 3
    """The largest number of starting points; one is tried only if those before it did
    not lead to a match."""
    matched: Annotated[float, Field(gt=0)] = 1e-6
    """The squared distance that counts as a match, as a share of the gradient's squared
    length."""
    history: Count = 100
    """The number of steps that L-BFGS remembers."""
    adaptive: bool = True
    """Whether the attack makes use of the settings of the run's defence, which are
    public; false attacks as if there were none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device to compute on."""

    labels_first: ClassVar[bool] = False

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Attack every observed update separately; see `Attack.reconstruct`."""
        check_updates(view, self.name)
        if self.labels_first:
            view = with_recovered_labels(view, self.adaptive)
        device = attack_device(self.device)
        model = training_network(view.config, view.image_shape, view.num_classes)
        check_batches(model, view)
        # Second-order steps need more digits than single precision has.
        model = model.double()
        total = len(view.observations)
        recovered: list[Recovered] = []
        victims: list[Victims] = []
        for number, observation in enumerate(view.observations):
            victim = _double(
                stack_victims(view, model, [observation], device, self.labels_first)
            )
            if self.adaptive:
                defense = SimulatedDefense.of(view.config.defense, observation.clients)
                victim = victim.behind(defense)
            recovered.append(self._leak(victim, view, rng))
            victims.append(victim)
            progress(number + 1, total)
        adaptation = Adaptation.of(self.adaptive, view.config.defense, victims)
        return Reconstruction(
            "encoding", tuple(recovered), adaptation=adaptation.to_json()
        )

    def _leak(
        self, victim: Victims, view: AdversaryView, rng: np.random.Generator
    ) -> Recovered:
        """Start again until the gradient is matched, and return the best match."""
        scale = sum(float(array.square().sum()) for array in victim.updates.values())
        best: tuple[float, Tensor, Tensor] | None = None
        starts = 0
        while starts < self.restarts:
            starts += 1
            loss, images, labels = self._descend(victim, view, rng, scale)
            if best is None or loss < best[0]:
                best = loss, images, labels
            if best[0] < self.matched:
                break
        assert best is not None
        observation = victim.observations[0]
        return Recovered(
            observation.client,
            observation.round,
            images=best[1][0].float().cpu(),
            soft_targets=None if self.labels_first else best[2][0].float().cpu(),
            diagnostics={"distance": best[0], "starts": float(starts)},
        )

    def _descend(
        self,
        victim: Victims,
        view: AdversaryView,
        rng: np.random.Generator,
        scale: float,
    ) -> tuple[float, Tensor, Tensor]:
        """Return the distance from a new start, with images and labels.

        Args:
            victim: One victim.
            view: The adversary's view.
            rng: The generator of the starting point.
            scale: The squared length of the observed update; distances are divided
                by it.
        """
        count, device = victim.steps.images, victim.device
        shape, classes = view.image_shape, view.num_classes
        images = starting_point((1, count, *shape), rng).to(device, torch.float64)
        logits = starting_point((1, count, classes), rng).to(device, torch.float64)
        labels = GuessedLabels(victim, view, logits)
        moving = [images.requires_grad_(), *labels.moving]
        optimizer = torch.optim.LBFGS(
            moving,
            max_iter=INNER_STEPS,
            history_size=self.history,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-12,
            tolerance_change=1e-14,
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            updates = _compared_updates(victim, images, labels.values())
            loss = squared_distance(updates, victim.updates).sum() / scale
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        loss = float("inf")
        for _ in range(self.iterations):
            before = loss
            stepped: Tensor = optimizer.step(closure)  # type: ignore[no-untyped-call]
            loss = float(stepped.detach())
            if loss < self.matched / 100 or loss == before or not np.isfinite(loss):
                break
        with torch.no_grad():
            updates = _compared_updates(victim, images, labels.values())
            last = squared_distance(updates, victim.updates).sum() / scale
        # A start that ended in NaN must not win against any match.
        distance = float(last) if bool(last.isfinite()) else float("inf")
        return distance, images.detach(), labels.values().detach()


class ImprovedDeepLeakage(DeepLeakage):
    """Find the images after the labels (iDLG)."""

    name: ClassVar[str] = "idlg"
    summary: ClassVar[str] = (
        "as dlg, with labels that were given, or recovered from the last layer"
    )
    source: ClassVar[str] = "Zhao et al., 2020, arXiv:2001.02610"
    labels_first: ClassVar[bool] = True


def _compared_updates(
    victims: Victims, images: Tensor, soft_targets: Tensor
) -> dict[str, Tensor]:
    """Return what guesses would have sent; see `simulated_updates`."""
    updates = simulated_updates(victims, images, soft_targets)
    if victims.defense is None:
        return updates
    return victims.defense.apply(updates, victims.updates)


def _double(victims: Victims) -> Victims:
    return replace(
        victims,
        parameters={name: a.double() for name, a in victims.parameters.items()},
        updates={name: a.double() for name, a in victims.updates.items()},
        soft_targets=None
        if victims.soft_targets is None
        else victims.soft_targets.double(),
    )
