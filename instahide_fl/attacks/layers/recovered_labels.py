"""Labels before images: soft labels that the last layer gives away."""

from __future__ import annotations

from dataclasses import replace

from instahide_fl.attacks.layers.linear_layers import LinearLayer, last_linear_layer
from instahide_fl.attacks.soft_labels import recover_label
from instahide_fl.errors import AttackError
from instahide_fl.transcript.view import AdversaryView, Observation


def with_recovered_labels(view: AdversaryView) -> AdversaryView:
    """Return the view with the labels of single images filled in.

    Labels that the threat model gives stay; those of larger batches, of several local
    steps, or behind a last layer that does not give them away stay unknown.
    """
    head = last_linear_layer(view.config, view.image_shape, view.num_classes)
    if head is None:
        return view
    known = tuple(_recovered(view, one, head) for one in view.observations)
    return replace(view, observations=known)


def _recovered(view: AdversaryView, one: Observation, head: LinearLayer) -> Observation:
    if one.soft_targets is not None or one.batch_sizes != (1,):
        return one
    try:
        found = recover_label(view, one, head)
    except AttackError:
        return one
    return replace(one, soft_targets=found.soft_targets)
