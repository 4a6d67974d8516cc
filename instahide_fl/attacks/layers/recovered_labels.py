"""Recover soft labels from the last layer, before images are attacked."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from instahide_fl.attacks.layers.linear_layers import (
    LinearLayer,
    last_linear_layer,
    layer_gradient,
)
from instahide_fl.attacks.soft_labels import recover_label
from instahide_fl.errors import AttackError
from instahide_fl.transcript.view import AdversaryView, Observation


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
    defense = view.config.defense
    try:
        if adaptive and (defense.transform_names or defense.is_private):
            label = _label_behind(view, observation, head)
        else:
            label = recover_label(view, observation, head).soft_targets
    except AttackError:
        return observation
    return replace(observation, soft_targets=label)


def _label_behind(
    view: AdversaryView, observation: Observation, head: LinearLayer
) -> Tensor | None:
    """Return the label of a plain image behind a defence, f32[1,K].

    The gradient of the last bias is the prediction minus the label, so its one negative
    entry is the largest of all: no transform loses it. Soft labels stay unknown.
    """
    if view.config.instahide.method != "none":
        return None
    gradient = layer_gradient(view.config, observation, head).bias
    label = F.one_hot(gradient.argmin(), len(gradient)).float()
    return label[None]  # [K] -> [1,K]
