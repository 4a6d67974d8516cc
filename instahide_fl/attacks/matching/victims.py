"""Victims: observed updates, stacked so that many are attacked at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instahide_fl.attacks.layers.linear_layers import build_network
from instahide_fl.config import Config
from instahide_fl.errors import AttackError
from instahide_fl.models.layout import accept_any_layout
from instahide_fl.transcript.view import AdversaryView, Observation
from instahide_fl.types import UpdateKind


@dataclass(frozen=True)
class Steps:
    """How a client came from the parameters it was sent to its update.

    Attributes:
        kind: "gradient" of the mean loss, or "delta" after local steps.
        batch_sizes: images of each step; one in mode gradient.
        learning_rate: of the local steps.
        momentum: of the local steps.
        weight_decay: of the local steps.
    """

    kind: UpdateKind
    batch_sizes: tuple[int, ...]
    learning_rate: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def images(self) -> int:
        """Images that the client trained on, each step's counted anew."""
        return sum(self.batch_sizes)


@dataclass(frozen=True)
class Victims:
    """V updates that were computed in the same way.

    Attributes:
        observations: which ones.
        model: the network, in training mode; its own parameters are not used.
        parameters: what each client was sent, f32[V,...] by name; or f32[...] where
            all were sent the same (`shared`).
        shared: whether all were sent the same parameters.
        updates: what each client sent, f32[V,...] by name.
        steps: how they came from one to the other.
        soft_targets: f32[V,M,K], or None if the adversary does not know them.
    """

    observations: tuple[Observation, ...]
    model: nn.Module
    parameters: dict[str, Tensor]
    shared: bool
    updates: dict[str, Tensor]
    steps: Steps
    soft_targets: Tensor | None

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def device(self) -> torch.device:
        """Where the updates are."""
        return next(iter(self.updates.values())).device


def training_network(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """Return the run's network as it computes gradients: in training mode.

    BatchNorm normalises by the batch at hand then; its running statistics take no part
    in a gradient, so they are taken out.

    Args:
        config: the run's settings.
        image_shape: C, H, W.
        num_classes: K.

    Raises:
        AttackError: it has dropout.
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
    """Refuse aggregates of batches that were each normalised by themselves.

    Args:
        model: of `training_network`.
        view: of the adversary.

    Raises:
        AttackError: several clients' batches went through BatchNorm one by one.
    """
    several = next((one for one in view.observations if one.clients > 1), None)
    normalised = any(isinstance(one, nn.BatchNorm2d) for one in model.modules())
    if several is not None and normalised:
        raise AttackError(
            f"BatchNorm normalises each client's batch by itself, so the aggregate of "
            f"{several.clients} clients is no gradient of one batch: run with "
            f'model.normalization = "group" or "none" (model.name = '
            f"{view.config.model.name!r}), or train.clients-per-round = 1"
        )


def alike(observations: Iterable[Observation]) -> Iterator[tuple[Observation, ...]]:
    """Yield observations in groups that can be stacked: same kind, same steps."""
    groups: dict[tuple[object, ...], list[Observation]] = {}
    for one in observations:
        key = (one.kind, one.batch_sizes, one.learning_rate_factor)
        groups.setdefault(key, []).append(one)
    for group in groups.values():
        yield tuple(group)


def stack_victims(
    view: AdversaryView,
    model: nn.Module,
    observations: Sequence[Observation],
    device: torch.device,
    with_labels: bool = True,
) -> Victims:
    """Put updates side by side.

    Args:
        view: of the adversary.
        model: of `training_network`.
        observations: of one group of `alike`.
        device: to compute on.
        with_labels: keep the labels that are known.

    Raises:
        AttackError: an update lacks parameters of the network.
    """
    names = [name for name, _ in model.named_parameters()]
    first, train = observations[0], view.config.train
    sent = [one.parameters or {} for one in observations]
    came = [one.update or {} for one in observations]
    for arrays in [*sent, *came]:
        if absent := set(names) - arrays.keys():
            raise AttackError(
                f"the transcript lacks the network's parameter {min(absent)}: was it "
                f"recorded with other settings?"
            )
    shared = all(
        torch.equal(arrays[name], sent[0][name]) for arrays in sent for name in names
    )
    parameters = {
        name: sent[0][name] if shared else torch.stack([one[name] for one in sent])
        for name in names
    }
    known = [one.soft_targets if with_labels else None for one in observations]
    steps = Steps(first.kind, first.batch_sizes)
    if first.kind == "delta":
        steps = Steps(
            first.kind,
            first.batch_sizes,
            train.learning_rate * first.learning_rate_factor,
            train.momentum,
            train.weight_decay,
        )
    labels = [one for one in known if one is not None]
    return Victims(
        tuple(observations),
        model.to(device),
        {name: array.to(device) for name, array in parameters.items()},
        shared,
        {name: torch.stack([one[name] for one in came]).to(device) for name in names},
        steps,
        torch.stack(labels).to(device) if len(labels) == len(known) else None,
    )


def attack_device(wanted: str) -> torch.device:
    """Return the device to attack on: "auto" takes a GPU where there is one.

    Raises:
        AttackError: a GPU is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise AttackError("device = cuda: there is no GPU; set device = auto or cpu")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")
