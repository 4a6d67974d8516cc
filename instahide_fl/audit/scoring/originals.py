"""The private images that an attack is scored on, and what is guessed without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instahide_fl.attacks.base import Recovered
from instahide_fl.errors import TranscriptError
from instahide_fl.metrics.baselines import mean_of_others
from instahide_fl.transcript.truth import ClientTruth
from instahide_fl.types import ChannelStatistics

MIN_FOR_A_MEAN = 8  # images; the mean of fewer still shows somebody's


@dataclass(frozen=True)
class ClientImages:
    """All private images of a client in recorded rounds, each once.

    Attributes:
        images: f32[n,C,H,W] in [0, 1].
        targets: i64[n].
        rows: i64[n], ascending: which images of the client they are.
    """

    images: Tensor
    targets: Tensor
    rows: Tensor

    @classmethod
    def of(cls, truths: Iterable[ClientTruth]) -> ClientImages:
        """Join the rounds of one client, at least one."""
        every = list(truths)
        given = torch.cat([truth.rows for truth in every])
        rows, place = torch.unique(given, return_inverse=True)
        first = torch.empty_like(rows)
        first[place] = torch.arange(len(given))  # a row's image is the same each round
        images = torch.cat([truth.images for truth in every])[first]
        targets = torch.cat([truth.targets for truth in every])[first]
        return cls(images.float() / 255, targets, rows)

    def located(self, rows: Tensor) -> Tensor:
        """Return where the client's images `rows` (i64, any shape) are in `images`."""
        return torch.searchsorted(self.rows, rows.contiguous())


@dataclass(frozen=True)
class Originals:
    """The private images of all clients that an attack is scored on.

    Attributes:
        clients: by key.
        statistics: constants that images are normalised with.
        unrecorded: f32[m,C,H,W] in [0, 1], images of clients that no recorded round
            mixed.
    """

    clients: Mapping[str, ClientImages]
    statistics: ChannelStatistics
    unrecorded: Tensor

    @classmethod
    def of(
        cls,
        truths: Mapping[tuple[int, str], ClientTruth],
        statistics: ChannelStatistics,
    ) -> Originals:
        """Join all rounds of all clients."""
        by_client: dict[str, list[ClientTruth]] = {}
        for (_, client), truth in truths.items():
            by_client.setdefault(client, []).append(truth)
        clients = {name: ClientImages.of(every) for name, every in by_client.items()}
        unrecorded = [
            _never_mixed(by_client[name], own) for name, own in clients.items()
        ]
        return cls(clients, statistics, torch.cat(unrecorded))

    def not_of(self, client: str) -> Tensor:
        """Return images that no attack on a client can be after.

        Returns:
            f32[m,C,H,W] in [0, 1]: those of other clients, and its own that were never
            mixed.
        """
        others = [some.images for name, some in self.clients.items() if name != client]
        return torch.cat([*others, self.unrecorded])

    def mean_of_others(self, client: str, components: Tensor) -> Tensor:
        """Return what an adversary would guess who knows only what such images are.

        Args:
            client: whose images they are.
            components: i64[R,p], the images of each victim.

        Returns:
            f32[R,C,H,W] in [0, 1].
        """
        before = 0
        for name, some in self.clients.items():
            if name == client:
                break
            before += len(some.images)
        recorded = [some.images for some in self.clients.values()]
        every = torch.cat([*recorded, self.unrecorded])
        return uninformed_guess(every, components + before, self.statistics)


def _never_mixed(truths: Sequence[ClientTruth], own: ClientImages) -> Tensor:
    """Return a client's images that were put aside in all rounds and mixed in none."""
    rows = torch.cat([truth.other_rows for truth in truths])
    images = torch.cat([truth.others for truth in truths])
    rows, place = torch.unique(rows, return_inverse=True)
    first = torch.empty_like(rows)
    first[place] = torch.arange(len(place))
    kept = ~torch.isin(rows, own.rows)
    return images[first[kept]].float() / 255


def uninformed_guess(
    images: Tensor, left_out: Tensor, statistics: ChannelStatistics
) -> Tensor:
    """Return the mean of all images but a victim's own; of too few, the mean colour.

    Args:
        images: f32[n,C,H,W], in units of [0, 1].
        left_out: i64[R,p], the images of each victim.
        statistics: constants that images are normalised with.

    Returns:
        f32[R,C,H,W].
    """
    if len(images) - left_out.shape[1] >= MIN_FOR_A_MEAN:
        return mean_of_others(images, left_out)
    plain = torch.zeros(len(left_out), *images.shape[1:])
    return statistics.restore(plain)


def truths_of(
    recovered: Recovered, truths: Mapping[tuple[int, str], ClientTruth]
) -> list[ClientTruth]:
    """Return the truth of a client: of the round named, of all for round 0.

    Raises:
        TranscriptError: it is missing.
    """
    found = [
        truth
        for (number, client), truth in truths.items()
        if client == recovered.client and recovered.round in (0, number)
    ]
    if not found:
        when = f"round {recovered.round}" if recovered.round else "every round"
        raise TranscriptError(
            f"the truth of client {recovered.client} is missing for {when}: scoring an "
            f"attack needs a simulation that ran with --set record.truth=true"
        )
    return found
