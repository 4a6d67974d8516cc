"""Find a network's first and last linear layer, and their parameters and gradients.

Layers are found by running the network, so that no attack depends on the names of
parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instahide_fl.config import Config, TrainConfig
from instahide_fl.errors import AttackError
from instahide_fl.models.registry import build_model
from instahide_fl.models.sign_invariance import standardised_absolute
from instahide_fl.transcript.view import AdversaryView, Observation


@dataclass(frozen=True)
class LinearLayer:
    """The names of a linear layer's parameters among a network's arrays."""

    weight: str
    bias: str


@dataclass(frozen=True)
class LayerTensors:
    """The weight f64[J,D] and bias f64[J] of a linear layer, or their gradients."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Call:
    """A call of a layer that has parameters of its own, with input and output."""

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor


def build_network(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """Return the run's network in evaluation mode, with arbitrary parameters."""
    network = build_model(config.network, image_shape, num_classes, config.seed)
    return network.eval()


def first_linear_layer(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> LinearLayer | None:
    """Return the first layer if it is linear on all pixels in their order, with a bias.

    On a sign-invariant network its inputs are the pixels' absolute values, standardised
    in each image.

    Args:
        config: The run's settings.
        image_shape: C, H, W.
        num_classes: K, the number of classes.

    Returns:
        The layer; None if the first layer is another.
    """
    calls, images, _ = _run(config, image_shape, num_classes)
    pixels = first_layer_inputs(config, images).flatten(1)  # [B,C,H,W] -> [B,C*H*W]
    first_input = calls[0].input
    if first_input.shape != pixels.shape or not first_input.equal(pixels):
        return None
    return _names(calls[0])


def first_layer_inputs(config: Config, images: Tensor) -> Tensor:
    """Return what the first layer of the run's network sees of images.

    Args:
        config: The run's settings.
        images: Any images, f32[B,C,H,W].

    Returns:
        f32[B,C,H,W], standardised absolute values if the network is sign-invariant.
    """
    return standardised_absolute(images) if config.sign_invariant else images


def last_linear_layer(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> LinearLayer | None:
    """Return the last layer if it is linear with a bias and gives the logits.

    Args:
        config: The run's settings.
        image_shape: C, H, W.
        num_classes: K, the number of classes.

    Returns:
        The layer; None if the last layer is another.
    """
    calls, _, logits = _run(config, image_shape, num_classes)
    return _names(calls[-1]) if calls[-1].output.equal(logits) else None


def require_head(attack: str, view: AdversaryView) -> LinearLayer:
    """Return the last layer of the run's network.

    Args:
        attack: The name of the attack, for the error.
        view: The adversary's view.

    Raises:
        AttackError: the last layer is not linear with a bias.
    """
    layer = last_linear_layer(view.config, view.image_shape, view.num_classes)
    if layer is None:
        raise AttackError(
            f"attack {attack} reads the gradient of a last layer that is linear with a "
            f"bias, which model.name = {view.config.model.name!r} lacks"
        )
    return layer


def layer_parameters(observation: Observation, layer: LinearLayer) -> LayerTensors:
    """Return the parameters of a layer that a client was sent, in double precision."""
    sent = observation.parameters
    assert sent is not None, "the threat model was checked to give parameters"
    return LayerTensors(sent[layer.weight].double(), sent[layer.bias].double())


def layer_gradient(
    config: Config, observation: Observation, layer: LinearLayer
) -> LayerTensors:
    """Return the gradient of the mean loss in a layer, in double precision.

    In mode update it is the sum of the local steps, divided by their number and the
    learning rate: exact for one step, the mean of the gradients for several.

    Args:
        config: The run's settings.
        observation: The observation of a client, with its update.
        layer: The layer.

    Raises:
        AttackError: the local steps were not those of plain SGD.
    """
    update = observation.update
    assert update is not None, "the threat model was checked to give updates"
    sent = LayerTensors(update[layer.weight].double(), update[layer.bias].double())
    if observation.kind == "gradient":
        return sent
    require_sgd(config.train)
    train, start = config.train, layer_parameters(observation, layer)
    total_rate = train.learning_rate * observation.learning_rate_factor
    total_rate *= len(observation.batch_sizes)
    return LayerTensors(
        -sent.weight / total_rate - train.weight_decay * start.weight,
        -sent.bias / total_rate - train.weight_decay * start.bias,
    )


def require_sgd(train: TrainConfig) -> None:
    """Check that local steps are those of SGD, which attacks can undo or repeat.

    Args:
        train: The `[train]` table of a run in mode update.

    Raises:
        AttackError: another optimizer took them, or gradients were scaled down.
    """
    if train.optimizer != "sgd" or train.clip_norm:
        raise AttackError(
            f"attacks undo and repeat local steps of SGD, the run has train.optimizer "
            f"= {train.optimizer!r} and train.clip-norm = {train.clip_norm:g}: record "
            f'a run with "sgd" and 0, or with train.mode = "gradient"'
        )


def require_one_step(attack: str, observation: Observation) -> None:
    """Check that an update comes from one gradient.

    Args:
        attack: The name of the attack, for the error.
        observation: The observation of a client, with its update.

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
    """Run the network on random images.

    Returns:
        The calls of layers in their order, the images and the logits.
    """
    network = build_network(config, image_shape, num_classes)
    calls: list[_Call] = []
    handles = [
        module.register_forward_hook(_recording_hook(calls, name))
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    # Two images, because BatchNorm without running statistics refuses a single one.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *image_shape, generator=generator)
    with torch.no_grad():
        logits: Tensor = network(images)
    for handle in handles:
        handle.remove()
    return calls, images, logits


def _recording_hook(
    calls: list[_Call], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(_Call(name, module, inputs[0], output))

    return record


def _names(call: _Call) -> LinearLayer | None:
    if not isinstance(call.module, nn.Linear) or call.module.bias is None:
        return None
    return LinearLayer(f"{call.name}.weight", f"{call.name}.bias")
