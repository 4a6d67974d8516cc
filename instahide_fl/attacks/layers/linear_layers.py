"""A network's first and last layer, where linear, and what was sent of their gradients.

Layers are found by running the network, so no attack knows the name of a parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instahide_fl.config import Config
from instahide_fl.errors import AttackError
from instahide_fl.models.registry import build_model
from instahide_fl.transcript.view import AdversaryView, Observation


@dataclass(frozen=True)
class LinearLayer:
    """Names of a linear layer's parameters among a network's arrays."""

    weight: str
    bias: str


@dataclass(frozen=True)
class LayerTensors:
    """Weight f64[J,D] and bias f64[J] of a linear layer, or their gradients."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Call:
    """A layer with parameters of its own, and what it made of what."""

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor


def build_network(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """Return the run's network in evaluation mode; its parameters mean nothing."""
    network = build_model(config.model, image_shape, num_classes, config.seed)
    return network.eval()


def first_linear_layer(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> LinearLayer | None:
    """Return the first layer if it is linear on all pixels, in their order, with bias.

    Args:
        config: the run's settings.
        image_shape: C, H, W.
        num_classes: K.
    """
    calls, images, _ = _run(config, image_shape, num_classes)
    given = calls[0].input
    if given.shape != images.flatten(1).shape or not given.equal(images.flatten(1)):
        return None
    return _names(calls[0])


def last_linear_layer(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> LinearLayer | None:
    """Return the last layer if it is linear with bias and gives the logits.

    Args:
        config: the run's settings.
        image_shape: C, H, W.
        num_classes: K.
    """
    calls, _, logits = _run(config, image_shape, num_classes)
    return _names(calls[-1]) if calls[-1].output.equal(logits) else None


def require_head(attack: str, view: AdversaryView) -> LinearLayer:
    """Return the last layer of the run's network.

    Raises:
        AttackError: it is not linear with a bias.
    """
    layer = last_linear_layer(view.config, view.image_shape, view.num_classes)
    if layer is None:
        raise AttackError(
            f"attack {attack} reads the gradient of a last layer that is linear with a "
            f"bias, which model.name = {view.config.model.name!r} lacks"
        )
    return layer


def layer_parameters(observation: Observation, layer: LinearLayer) -> LayerTensors:
    """Return what the client was sent of a layer, in double precision."""
    sent = observation.parameters
    assert sent is not None, "the threat model was checked to give parameters"
    return LayerTensors(sent[layer.weight].double(), sent[layer.bias].double())


def layer_gradient(
    config: Config, observation: Observation, layer: LinearLayer
) -> LayerTensors:
    """Return the gradient of the mean loss in a layer, in double precision.

    In mode update it is what the local steps add up to, divided by their number and the
    learning rate: exact for one step, and for more the mean of their gradients.

    Args:
        config: the run's settings.
        observation: a client with its update.
        layer: which layer.
    """
    update = observation.update
    assert update is not None, "the threat model was checked to give updates"
    sent = LayerTensors(update[layer.weight].double(), update[layer.bias].double())
    if observation.kind == "gradient":
        return sent
    train, start = config.train, layer_parameters(observation, layer)
    moved = train.learning_rate * observation.learning_rate_factor
    moved *= len(observation.batch_sizes)
    return LayerTensors(
        -sent.weight / moved - train.weight_decay * start.weight,
        -sent.bias / moved - train.weight_decay * start.bias,
    )


def require_one_step(attack: str, observation: Observation) -> None:
    """Check that an update comes from one gradient.

    Raises:
        AttackError: the client took several local steps.
    """
    steps = len(observation.batch_sizes)
    if steps > 1:
        raise AttackError(
            f"attack {attack} needs updates of one gradient, {observation.who} took "
            f"{steps} local steps in round {observation.round}: "
            f'set train.mode = "gradient", or local-epochs = 1 '
            f"and a batch-size of all images of a client"
        )


def _run(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[list[_Call], Tensor, Tensor]:
    """Return the layers in the order they work in, the images and the logits."""
    network = build_network(config, image_shape, num_classes)
    calls: list[_Call] = []
    handles = [
        module.register_forward_hook(_noting(calls, name))
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    # Two images: BatchNorm by the batch at hand refuses to normalise a single one.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *image_shape, generator=generator)
    with torch.no_grad():
        logits: Tensor = network(images)
    for handle in handles:
        handle.remove()
    return calls, images, logits


def _noting(
    calls: list[_Call], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(_Call(name, module, inputs[0], output))

    return note


def _names(call: _Call) -> LinearLayer | None:
    if not isinstance(call.module, nn.Linear) or call.module.bias is None:
        return None
    return LinearLayer(f"{call.name}.weight", f"{call.name}.bias")
