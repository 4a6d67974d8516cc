"""Victims: observed updates, stacked so that many are attacked at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from instahide_fl.attacks.layers.linear_layers import build_network, require_sgd
from instahide_fl.attacks.matching.simulated_defense import SimulatedDefense
from instahide_fl.config import Config
from instahide_fl.data.datasets import augmentation_for
from instahide_fl.errors import AttackError
from instahide_fl.models.layout import accept_any_layout
from instahide_fl.transcript.view import AdversaryView, Observation
from instahide_fl.types import UpdateKind


@dataclass(frozen=True)
class Steps:
    """The steps that led a client from the parameters it was sent to its update.

    Attributes:
        kind: "gradient" of the mean loss, or "delta" after local steps.
        batch_sizes: The number of images of each step; one step in mode gradient.
        learning_rate: The learning rate of the local steps.
        momentum: The momentum of the local steps.
        weight_decay: The weight decay of the local steps.
        rows: The image in each place of the steps, where epochs share their images;
            empty where each place has an image of its own.
    """

    kind: UpdateKind
    batch_sizes: tuple[int, ...]
    learning_rate: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    rows: tuple[int, ...] = ()

    @property
    def images(self) -> int:
        """The number of different images that the client trained on."""
        return max(self.rows) + 1 if self.rows else sum(self.batch_sizes)

    @property
    def has_orders(self) -> bool:
        """Whether epochs share images whose order in the steps matters."""
        return bool(self.rows) and self.batch_sizes[0] < self.images

    def one_epoch(self) -> Steps:
        """Return the steps as one gradient of all images."""
        return Steps("gradient", (self.images,))

    def reordered(self, rng: np.random.Generator) -> Steps:
        """Return the steps with orders of their own for all epochs but the first.

        Args:
            rng: The generator of the orders.
        """
        first = self.rows[: self.images]
        later = range(len(self.rows) // self.images - 1)
        orders = [rng.permutation(self.images).tolist() for _ in later]
        return replace(self, rows=(*first, *(row for order in orders for row in order)))


@dataclass(frozen=True)
class Victims:
    """V updates that were computed in the same way.

    Attributes:
        observations: The observations of the V victims.
        model: The network, in training mode; its own parameters are not used.
        parameters: The parameters that each client was sent, by name, f32[V,...]; or
            f32[...] where all were sent the same (`shared`).
        shared: Whether all were sent the same parameters.
        updates: The updates that clients sent, by name, f32[V,...].
        steps: The steps from the parameters to the updates.
        soft_targets: The labels, f32[V,M,K]; None if the adversary does not know them.
        defense: The transforms that the update of a guess passes before it is compared;
            None to compare it as it is.
    """

    observations: tuple[Observation, ...]
    model: nn.Module
    parameters: dict[str, Tensor]
    shared: bool
    updates: dict[str, Tensor]
    steps: Steps
    soft_targets: Tensor | None
    defense: SimulatedDefense | None = None

    def __len__(self) -> int:
        return len(self.observations)

    def with_shared_images(self, epochs: int) -> Victims:
        """Return the victims with the same images in each of their local epochs.

        Known labels of small batches say which image is in which step, so these keep
        an image for each place.

        Args:
            epochs: The number of local epochs.
        """
        if epochs == 1:
            return self
        steps, labels = self.steps, self.soft_targets
        count = steps.images // epochs
        shared = replace(steps, rows=tuple(range(count)) * epochs)
        if labels is not None and shared.has_orders:
            return self
        first = None if labels is None else labels[:, :count]
        return replace(self, steps=shared, soft_targets=first)

    def as_one_step(self) -> Victims:
        """Return the victims as if their updates were a gradient of all images."""
        steps = self.steps.one_epoch()
        labels = self.soft_targets
        return replace(
            self,
            updates={name: -array for name, array in self.updates.items()},
            steps=steps,
            soft_targets=None if labels is None else labels[:, : steps.images],
        )

    def behind(self, defense: SimulatedDefense) -> Victims:
        """Return the victims with a defence that is repeated on guesses."""
        updates = defense.sent_alone(self.updates)
        return replace(self, defense=defense, updates=updates)

    @property
    def device(self) -> torch.device:
        """The device of the updates."""
        return next(iter(self.updates.values())).device


def training_network(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """Return the run's network in training mode, in which gradients are computed.

    BatchNorm then normalises by the statistics of the batch; its running statistics do
    not affect gradients and are removed.

    Args:
        config: The run's settings.
        image_shape: C, H, W.
        num_classes: K, the number of classes.

    Raises:
        AttackError: the network has dropout.
    """
    model = build_network(config, image_shape, num_classes)
    torch.func.replace_all_batch_norm_modules_(model)
    accept_any_layout(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            raise AttackError(
                f"model.name = {config.model.name!r} drops units at random: gradients "
                f"cannot be matched through a mask that only the client knows"
            )
    return model.train()


def check_batches(model: nn.Module, view: AdversaryView) -> None:
    """Refuse aggregates of batches that BatchNorm normalised separately.

    Args:
        model: The network, as `training_network` returns it.
        view: The adversary's view.

    Raises:
        AttackError: the network has BatchNorm, and an update is of several clients.
    """
    aggregate = next((o for o in view.observations if o.clients > 1), None)
    has_batch_norm = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    if aggregate is not None and has_batch_norm:
        raise AttackError(
            f"BatchNorm normalises each client's batch by itself, so the aggregate of "
            f"{aggregate.clients} clients is no gradient of one batch: run with "
            f'model.normalization = "group" or "none" (model.name = '
            f"{view.config.model.name!r}), or train.clients-per-round = 1"
        )


def alike(observations: Iterable[Observation]) -> Iterator[tuple[Observation, ...]]:
    """Yield groups of observations that can be stacked: of the same kind and steps."""
    groups: dict[tuple[object, ...], list[Observation]] = {}
    for observation in observations:
        key = (
            observation.kind,
            observation.batch_sizes,
            observation.learning_rate_factor,
            observation.clients,
        )
        groups.setdefault(key, []).append(observation)
    for group in groups.values():
        yield tuple(group)


def stack_victims(
    view: AdversaryView,
    model: nn.Module,
    observations: Sequence[Observation],
    device: torch.device,
    with_labels: bool = True,
) -> Victims:
    """Stack the updates of victims.

    Args:
        view: The adversary's view.
        model: The network, as `training_network` returns it.
        observations: The victims, a group of `alike`.
        device: The device to compute on.
        with_labels: Whether to use the labels that are known.

    Raises:
        AttackError: an update lacks parameters of the network.
    """
    names = [name for name, _ in model.named_parameters()]
    parameters = [o.parameters or {} for o in observations]
    updates = [o.update or {} for o in observations]
    for arrays in [*parameters, *updates]:
        if absent := set(names) - arrays.keys():
            raise AttackError(
                f"the transcript lacks the network's parameter {min(absent)}: was it "
                f"recorded with other settings?"
            )
    first = parameters[0]
    shared = all(
        torch.equal(arrays[name], first[name])
        for arrays in parameters
        for name in names
    )
    labels = [o.soft_targets for o in observations if o.soft_targets is not None]
    has_labels = with_labels and len(labels) == len(observations)
    return Victims(
        observations=tuple(observations),
        model=model.to(device),
        parameters={
            name: (first[name] if shared else _stack(parameters, name)).to(device)
            for name in names
        },
        shared=shared,
        updates={name: _stack(updates, name).to(device) for name in names},
        steps=_steps(view, observations[0]),
        soft_targets=torch.stack(labels).to(device) if has_labels else None,
    )


def _stack(arrays: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    return torch.stack([by_name[name] for by_name in arrays])  # [V,...]


def _steps(view: AdversaryView, observation: Observation) -> Steps:
    if observation.kind == "gradient":
        return Steps(observation.kind, observation.batch_sizes)
    train = view.config.train
    require_sgd(train)
    return Steps(
        kind=observation.kind,
        batch_sizes=observation.batch_sizes,
        learning_rate=train.learning_rate * observation.learning_rate_factor,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
    )


def repeats_images(view: AdversaryView) -> bool:
    """Tell whether a client trains on the very same images in each local epoch."""
    config = view.config
    return (
        config.instahide.method == "none"
        and config.defense.differential_privacy != "dp-sgd"
        and augmentation_for(config.data, view.image_shape) is None
    )


def attack_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device to attack on; "auto" takes a GPU where there is one.

    Raises:
        AttackError: "cuda" is asked for, and there is no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise AttackError("device = cuda: there is no GPU; set device = auto or cpu")
    return torch.device("cuda" if has_gpu and device != "cpu" else "cpu")
