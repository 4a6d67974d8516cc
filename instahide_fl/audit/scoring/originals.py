"""The private images that an attack is scored on, and what is guessed without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from instahide_fl.metrics.baselines import mean_of_others
from instahide_fl.metrics.folding import fold
from instahide_fl.transcript.truth import ClientTruth, Truths
from instahide_fl.types import ChannelStatistics

MIN_FOR_A_MEAN = 8  # images; the mean of fewer still shows somebody's


@dataclass(frozen=True)
class ClientImages:
    """All private images of a client in the recorded rounds, each once.

    Attributes:
        images: f32[n,C,H,W] in [0, 1].
        targets: i64[n].
        rows: i64[n], ascending: which images of the client they are.
    """

    images: Tensor
    targets: Tensor
    rows: Tensor

    @classmethod
    def of(cls, truths: Sequence[ClientTruth]) -> ClientImages:
        """Join the rounds, at least one, of a client."""
        rows, index = _each_row_once(torch.cat([truth.rows for truth in truths]))
        images = torch.cat([truth.images for truth in truths])[index]
        targets = torch.cat([truth.targets for truth in truths])[index]
        return cls(images.float() / 255, targets, rows)

    def located(self, rows: Tensor) -> Tensor:
        """Return where the client's images `rows` (i64, any shape) are in `images`."""
        return torch.searchsorted(self.rows, rows.contiguous())


@dataclass(frozen=True)
class Originals:
    """The private images of all clients that an attack is scored on.

    Attributes:
        clients: Each client's images, by client key.
        statistics: Constants that images are normalised with.
        unrecorded: f32[m,C,H,W] in [0, 1], images of clients that no recorded round
            mixed.
    """

    clients: Mapping[str, ClientImages]
    statistics: ChannelStatistics
    unrecorded: Tensor

    @classmethod
    def of(cls, truths: Truths, statistics: ChannelStatistics) -> Originals:
        """Join all rounds of each client."""
        by_client: dict[str, list[ClientTruth]] = {}
        for (_, client), truth in truths.items():
            by_client.setdefault(client, []).append(truth)
        clients = {
            client: ClientImages.of(rounds) for client, rounds in by_client.items()
        }
        unrecorded = [
            _never_mixed(by_client[client], mixed) for client, mixed in clients.items()
        ]
        return cls(clients, statistics, torch.cat(unrecorded))

    @cached_property
    def folded(self) -> Originals:
        """The same images, each as its absolute values on the common scale."""
        clients = {
            client: replace(mixed, images=fold(mixed.images, self.statistics))
            for client, mixed in self.clients.items()
        }
        return replace(
            self, clients=clients, unrecorded=fold(self.unrecorded, self.statistics)
        )

    def not_of(self, client: str) -> Tensor:
        """Return images that no attack on a client can be after.

        Returns:
            f32[m,C,H,W] in [0, 1]: those of other clients, and images of any client
            that were never mixed.
        """
        others = [
            mixed.images for name, mixed in self.clients.items() if name != client
        ]
        return torch.cat([*others, self.unrecorded])

    def mean_of_others(self, client: str, components: Tensor) -> Tensor:
        """Return the guess of an adversary who only knows what such images look like.

        Args:
            client: The client that the victims belong to.
            components: i64[R,p], the images of each victim.

        Returns:
            f32[R,C,H,W] in [0, 1].
        """
        offset = 0
        for name, mixed in self.clients.items():
            if name == client:
                break
            offset += len(mixed.images)
        recorded = [mixed.images for mixed in self.clients.values()]
        images = torch.cat([*recorded, self.unrecorded])
        return uninformed_guess(images, components + offset, self.statistics)


def _never_mixed(truths: Sequence[ClientTruth], mixed: ClientImages) -> Tensor:
    """Return a client's images that were put aside in a round and mixed in none."""
    rows, index = _each_row_once(torch.cat([truth.other_rows for truth in truths]))
    images = torch.cat([truth.others for truth in truths])
    never = ~torch.isin(rows, mixed.rows)
    return images[index[never]].float() / 255


def _each_row_once(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows, ascending, and where each of them is in `rows`.

    A row names the same image in every round, so any of its places will do.
    """
    distinct, inverse = torch.unique(rows, return_inverse=True)
    index = torch.empty_like(distinct)
    index[inverse] = torch.arange(len(rows))
    return distinct, index


def uninformed_guess(
    images: Tensor, excluded: Tensor, statistics: ChannelStatistics
) -> Tensor:
    """Return the mean of all images but a victim's own; of too few, the mean colour.

    Args:
        images: f32[n,C,H,W], in units of [0, 1].
        excluded: i64[R,p], the images of each victim.
        statistics: Constants that images are normalised with.

    Returns:
        f32[R,C,H,W], in units of [0, 1].
    """
    if len(images) - excluded.shape[1] >= MIN_FOR_A_MEAN:
        return mean_of_others(images, excluded)
    mean_colour = torch.zeros(len(excluded), *images.shape[1:])  # once restored
    return statistics.restore(mean_colour)
