"""Recover soft labels from the last layer, before images are attacked."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from instahide_fl.attacks.layers.linear_layers import (
    LinearLayer,
    last_linear_layer,
    layer_gradient,
    layer_parameters,
)
from instahide_fl.attacks.soft_labels import (
    known_weight,
    recover_label,
    soft_label,
)
from instahide_fl.errors import AttackError
from instahide_fl.transcript.view import AdversaryView, Observation

MAX_LABEL_ERROR = 0.05  # standard error of an entry, beyond which labels are optimised


def with_recovered_labels(view: AdversaryView, adaptive: bool) -> AdversaryView:
    """Return the view with the labels of single images filled in.

    Labels that the threat model gives stay as they are. Labels of larger batches, of
    several local steps, or behind a last layer that is not linear stay unknown.

    Args:
        view: The adversary's view.
        adaptive: Whether to make use of the settings of the run's defence.
    """
    head = last_linear_layer(view.config, view.image_shape, view.num_classes)
    if head is None:
        return view
    observations = tuple(
        _with_label(view, observation, head, adaptive)
        for observation in view.observations
    )
    return replace(view, observations=observations)


def _with_label(
    view: AdversaryView, observation: Observation, head: LinearLayer, adaptive: bool
) -> Observation:
    if observation.soft_targets is not None or observation.batch_sizes != (1,):
        return observation
    behind_defense = adaptive and view.config.defense.description != "none"
    recover = _label_behind if behind_defense else _label_of_unchanged
    try:
        label = recover(view, observation, head)
    except AttackError:
        return observation
    if label is None:
        return observation
    return replace(observation, soft_targets=label[None].float())  # [K] -> [1,K]


def _label_of_unchanged(
    view: AdversaryView, observation: Observation, head: LinearLayer
) -> Tensor | None:
    """Return the label of an update that no defence has changed, f64[K]."""
    gradient = layer_gradient(view.config, observation, head)
    if not gradient.bias.any():
        return None
    parameters = layer_parameters(observation, head)
    return soft_label(gradient, parameters, known_weight(view.config))


def _label_behind(
    view: AdversaryView, observation: Observation, head: LinearLayer
) -> Tensor | None:
    """Return the label behind a defence, [K]; None if it is too uncertain.

    For a plain image the gradient of the last bias is the prediction minus the label,
    so its one negative entry is the largest of all: no transform loses it.
    """
    if view.config.instahide.method == "none":
        gradient = layer_gradient(view.config, observation, head).bias
        return F.one_hot(gradient.argmin(), len(gradient))
    recovered = recover_label(view, observation, head)
    if recovered.diagnostics["label_error"] > MAX_LABEL_ERROR:
        return None
    assert recovered.soft_targets is not None
    return recovered.soft_targets[0]
