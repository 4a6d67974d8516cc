"""The encodings of one client, of all rounds together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from instahide_fl.errors import AttackError
from instahide_fl.transcript.view import AdversaryView, Observation


@dataclass(frozen=True)
class JoinedEncodings:
    """Distinct encodings of one client.

    Attributes:
        client: its key.
        images: f32[E,C,H,W], normalised.
        soft_targets: f32[E,K].
        places: i64[E], where each is first seen, counting through the client's rounds.
    """

    client: str
    images: Tensor
    soft_targets: Tensor
    places: Tensor


def join_clients(view: AdversaryView) -> list[JoinedEncodings]:
    """Join the rounds of each client; an encoding that is sent again counts once.

    Raises:
        AttackError: there are no encodings, or they have no soft labels.
    """
    by_client: dict[str, list[Observation]] = {}
    for one in view.observations:
        if one.encodings is not None:
            by_client.setdefault(one.client, []).append(one)
    if not by_client:
        raise AttackError(
            "there are no encodings to attack: record at least one round "
            '(--set record.rounds="1") with clients in it'
        )
    return [_joined(client, every) for client, every in by_client.items()]


def _joined(client: str, every: list[Observation]) -> JoinedEncodings:
    in_order = sorted(every, key=lambda one: one.round)
    images = [one.encodings for one in in_order if one.encodings is not None]
    labels = [one.soft_targets for one in in_order if one.soft_targets is not None]
    if len(labels) < len(images):
        raise AttackError(
            f"the encodings of client {client} have no soft labels, which tell classes "
            f"and coefficients: without them this attack has not enough information"
        )
    together = torch.cat(images).float()
    places = _first_of_each(together)
    return JoinedEncodings(
        client, together[places], torch.cat(labels).float()[places], places
    )


def _first_of_each(images: Tensor) -> Tensor:
    """Return the rows of distinct images, ascending."""
    seen: dict[bytes, int] = {}
    for row, image in enumerate(images):
        seen.setdefault(image.numpy().tobytes(), row)
    return torch.tensor(sorted(seen.values()))
