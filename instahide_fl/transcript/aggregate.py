"""All clients of a round as one, for whoever sees only aggregates.

The mean of the clients' gradients, each weighted by its images, is the gradient of the
mean loss over all their images. So whoever sees a round's aggregate alone faces the
problem that the server faces with one client, who would have trained on the batches of
all. That client is called `ALL_CLIENTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from instahide_fl.aggregation.weights import WEIGHTS
from instahide_fl.config import Config
from instahide_fl.transcript.truth import ClientTruth, Truths
from instahide_fl.types import EncodingKey

ALL_CLIENTS = "all"


def why_not_as_one_client(config: Config, clients: int) -> str:
    """Return why an aggregate cannot be attacked as one client's update.

    Args:
        config: The run's settings.
        clients: The number of clients whose updates are in the aggregate.

    Returns:
        A sentence with a remedy; empty if it can, being just what one client with
        all images would have sent.
    """
    rule = config.server.aggregation
    if rule not in WEIGHTS:
        return (
            f"server.aggregation = {rule!r} is no mean of the clients' updates, and so "
            f'no gradient of a loss over all their images: run with "weighted-mean"'
        )
    if config.train.mode == "update" and clients > 1:
        return (
            f"the mean of what {clients} clients moved in their own local steps is no "
            f"step of one client: run with train.mode = gradient, or "
            f"train.clients-per-round = 1"
        )
    return ""


def expected_cohort(config: Config) -> tuple[int, int]:
    """Return the cohort that the settings imply; used when only the sum was recorded.

    Returns:
        The number of clients, and the number of images that they computed on together:
        the full batches of clients that hold enough; 0 if unknown (mode update).
    """
    train = config.train
    clients = train.clients_per_round or config.partition.num_clients
    if train.mode == "update":
        return clients, 0
    return clients, clients * train.batch_size * train.local_batches


def truths_together(truths: Truths) -> dict[tuple[int, str], ClientTruth]:
    """Join the truths of each round's clients.

    Args:
        truths: The truth of each client in each recorded round.

    Returns:
        The truth of `ALL_CLIENTS` in each round. Rows are counted on from client to
        client, so an image has the same row in every round.
    """
    ends: dict[str, int] = {}
    for (_, client), truth in truths.items():
        last = int(torch.cat([truth.rows, truth.other_rows]).max())
        ends[client] = max(ends.get(client, 0), last + 1)
    offsets, offset = {}, 0
    for client, end in ends.items():
        offsets[client] = offset
        offset += end
    by_round: dict[int, list[ClientTruth]] = {}
    for client in ends:
        for (number, name), truth in truths.items():
            if name == client:
                shifted = _with_rows_from(truth, offsets[client])
                by_round.setdefault(number, []).append(shifted)
    return {
        (number, ALL_CLIENTS): _concatenate(number, clients)
        for number, clients in sorted(by_round.items())
    }


def _with_rows_from(truth: ClientTruth, offset: int) -> ClientTruth:
    key = replace(truth.key, private_index=truth.key.private_index + offset)
    return replace(
        truth,
        rows=truth.rows + offset,
        key=key,
        other_rows=truth.other_rows + offset,
    )


def _concatenate(number: int, truths: Sequence[ClientTruth]) -> ClientTruth:
    """Join the truths of clients whose rows ascend from one client to the next."""
    return ClientTruth(
        round=number,
        client=ALL_CLIENTS,
        images=torch.cat([truth.images for truth in truths]),
        targets=torch.cat([truth.targets for truth in truths]),
        rows=torch.cat([truth.rows for truth in truths]),
        encodings=torch.cat([truth.encodings for truth in truths]),
        soft_targets=torch.cat([truth.soft_targets for truth in truths]),
        key=EncodingKey.concatenate([truth.key for truth in truths]),
        batch_sizes=tuple(size for truth in truths for size in truth.batch_sizes),
        others=torch.cat([truth.others for truth in truths]),
        other_rows=torch.cat([truth.other_rows for truth in truths]),
    )
