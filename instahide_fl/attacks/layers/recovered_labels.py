"""Recover soft labels from the last layer, before images are attacked."""

from __future__ import annotations

from dataclasses import replace

from instahide_fl.attacks.layers.linear_layers import LinearLayer, last_linear_layer
from instahide_fl.attacks.soft_labels import recover_label
from instahide_fl.errors import AttackError
from instahide_fl.transcript.view import AdversaryView, Observation


def with_recovered_labels(view: AdversaryView) -> AdversaryView:
    """Return the view with the labels of single images filled in.

    Labels that the threat model gives stay as they are. Labels of larger batches, of
    several local steps, or behind a last layer that is not linear stay unknown.
    """
    head = last_linear_layer(view.config, view.image_shape, view.num_classes)
    if head is None:
        return view
    observations = tuple(
        _with_label(view, observation, head) for observation in view.observations
    )
    return replace(view, observations=observations)


def _with_label(
    view: AdversaryView, observation: Observation, head: LinearLayer
) -> Observation:
    if observation.soft_targets is not None or observation.batch_sizes != (1,):
        return observation
    try:
        label = recover_label(view, observation, head)
    except AttackError:
        return observation
    return replace(observation, soft_targets=label.soft_targets)
