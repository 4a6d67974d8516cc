"""The encodings of one client, of all rounds together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from instahide_fl.errors import AttackError
from instahide_fl.transcript.view import AdversaryView, Observation


@dataclass(frozen=True)
class ClientEncodings:
    """The distinct encodings of one client.

    Attributes:
        client: The key of the client.
        images: f32[E,C,H,W], the encodings, normalised.
        soft_targets: f32[E,K], their soft labels.
        first_rows: i64[E], the row where each first appears, counting through the
            client's rounds.
    """

    client: str
    images: Tensor
    soft_targets: Tensor
    first_rows: Tensor


def collect_encodings(view: AdversaryView) -> list[ClientEncodings]:
    """Collect the encodings of each client; one that is sent again counts once.

    Raises:
        AttackError: There are no encodings, or they have no soft labels.
    """
    by_client: dict[str, list[Observation]] = {}
    for observation in view.observations:
        if observation.encodings is not None:
            by_client.setdefault(observation.client, []).append(observation)
    if not by_client:
        raise AttackError(
            "there are no encodings to attack: record at least one round "
            '(--set record.rounds="1") with clients in it'
        )
    return [_concatenated(client, rounds) for client, rounds in by_client.items()]


def _concatenated(client: str, observations: list[Observation]) -> ClientEncodings:
    in_order = sorted(observations, key=lambda observation: observation.round)
    images = [round_.encodings for round_ in in_order if round_.encodings is not None]
    labels = [
        round_.soft_targets for round_ in in_order if round_.soft_targets is not None
    ]
    if len(labels) < len(images):
        raise AttackError(
            f"the encodings of client {client} have no soft labels, which tell classes "
            f"and coefficients: without them this attack has not enough information"
        )
    all_images = torch.cat(images).float()
    rows = _first_of_each(all_images)
    return ClientEncodings(
        client, all_images[rows], torch.cat(labels).float()[rows], rows
    )


def _first_of_each(images: Tensor) -> Tensor:
    """Return the rows of distinct images, ascending."""
    # An encoding that is sent again (`instahide.refresh`) is equal to the last bit.
    first_rows: dict[bytes, int] = {}
    for row, image in enumerate(images):
        first_rows.setdefault(image.numpy().tobytes(), row)
    return torch.tensor(sorted(first_rows.values()))
