"""Whether reconstructions identify their image among many that nobody trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instahide_fl.audit.scoring.originals import ClientImages
from instahide_fl.metrics.candidates import (
    DISTANCES,
    SIZES,
    Candidates,
    Distance,
    chance_of_rank,
    ranks_among,
)
from instahide_fl.metrics.intervals import CONFIDENCE, Interval, clopper_pearson
from instahide_fl.types import ChannelStatistics

SIGNIFICANCE = 0.001
"""Probability of as many identified images by chance, at most."""
TIMES_CHANCE = 2.0
"""Share of identified images, in units of chance, at least."""
TOP = 10
MAX_ROWS = 4096  # reconstructions ranked at once, to bound memory


@dataclass(frozen=True)
class PairedImages:
    """Reconstructions of one client, and the images that each of them may identify.

    Attributes:
        client: The client's key.
        images: f32[R,C,H,W], reconstructions, normalised.
        client_images: All images of the client.
        components: i64[R,p], which of them are the true images of each.
        choices: The number of images that the true ones were chosen from by similarity.
    """

    client: str
    images: Tensor
    client_images: ClientImages
    components: Tensor
    choices: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> Tensor:
        """i64[R,p]: the classes of the true images."""
        return self.client_images.targets[self.components]

    @property
    def rows(self) -> list[tuple[str, int]]:
        """The client and the row of every true image."""
        rows = self.client_images.rows[self.components.flatten()]
        return [(self.client, int(row)) for row in rows]

    def originals(self, start: int, statistics: ChannelStatistics) -> Tensor:
        """Return the true images of up to `MAX_ROWS` rows, f32[r,p,C,H,W], normalised.

        Args:
            start: The first row.
            statistics: Constants that images are normalised with.
        """
        index = self.components[start : start + MAX_ROWS]
        images = self.client_images.images[index.flatten()]
        # [r*p,C,H,W] -> [r,p,C,H,W]
        return statistics.normalise(images * 255).view(*index.shape, *images.shape[1:])


@dataclass(frozen=True)
class RankScores:
    """How often the true image comes first among N candidates.

    Attributes:
        size: N, the true image included.
        ranks: i64[R] for each distance, how many candidates resemble a reconstruction
            as much as the true image does.
        in_class: i64[R] for each distance, the number of candidates of the true
            image's class.
        choices: i64[R], the number of images that the true one was chosen from.
        num_images: The number of distinct true images, which are the independent
            trials: several reconstructions of one image count as one.
    """

    size: int
    ranks: Mapping[str, Tensor]
    in_class: Mapping[str, Tensor]
    choices: Tensor
    num_images: int

    @property
    def distance(self) -> str:
        """The distance by which most images are identified."""
        return max(
            self.ranks, key=lambda name: (self.top(1, name), self.top(TOP, name))
        )

    def top(self, first: int, distance: str | None = None) -> float:
        """Return the share of true images among the first; by the best distance."""
        ranks = self.ranks[distance or self.distance]
        return float((ranks < first).double().mean())

    def interval(self, first: int) -> Interval:
        """Return the exact 95% interval of `top`, corrected for the best distance."""
        confidence = 1 - (1 - CONFIDENCE) / len(self.ranks)
        return clopper_pearson(self._hits(first), self.num_images, confidence)

    def chance(self, first: int) -> float:
        """Return what a random order of all candidates reaches."""
        others = torch.full_like(self.choices, self.size - 1)
        return float(chance_of_rank(first, others, self.choices).mean())

    @property
    def class_chance(self) -> float:
        """What a random order of candidates of the right class reaches, for the first.

        Classes are no secret of an image, and the images of a client may all be of one.
        """
        others = self.in_class[self.distance]
        return float(chance_of_rank(1, others, self.choices).mean())

    @property
    def p_value(self) -> float:
        """The probability that knowing the classes identifies as many.

        Corrected for the choice among distances (Bonferroni).
        """
        # Imported here: only verdicts need it, and it takes a while.
        from scipy.stats import binom

        by_chance = binom.sf(self._hits(1) - 1, self.num_images, self.class_chance)
        return min(1.0, len(self.ranks) * float(by_chance))

    @property
    def beats_chance(self) -> bool:
        """Whether clearly more images are identified than classes explain."""
        clearly = self.top(1) >= TIMES_CHANCE * self.class_chance
        return clearly and self.p_value <= SIGNIFICANCE

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        return {
            "top1": self.top(1),
            "top1_interval": list(self.interval(1)),
            "top10": self.top(TOP),
            "top10_interval": list(self.interval(TOP)),
            "chance": self.chance(1),
            "top10_chance": self.chance(TOP),
            "class_chance": self.class_chance,
            "p_value": self.p_value,
            "distance": self.distance,
            "by_distance": {
                name: {"top1": self.top(1, name), "top10": self.top(TOP, name)}
                for name in self.ranks
            },
            "count": len(self.choices),
            "images": self.num_images,
        }

    def _hits(self, first: int) -> int:
        return int(self.top(first) * self.num_images + 1e-9)


@dataclass(frozen=True)
class CandidateScores:
    """Identification among as many candidates as there are images for.

    Attributes:
        num_candidates: The number of images that nobody trained on.
        by_size: The scores for each N, ascending; at least one.
    """

    num_candidates: int
    by_size: Sequence[RankScores]

    @property
    def decisive(self) -> RankScores:
        """The scores that verdicts go by: those of the largest N."""
        return self.by_size[-1]

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        scores = {str(ranked.size): ranked.to_json() for ranked in self.by_size}
        sizes = {ranked.size for ranked in self.by_size}
        left_out = [size for size in SIZES if size not in sizes]
        return {
            "candidates": self.num_candidates,
            **scores,
            **({"left_out": left_out} if left_out else {}),
        }


def score_candidates(
    clients: Sequence[Mapping[Distance, PairedImages]], candidates: Candidates | None
) -> CandidateScores | None:
    """Rank the true images of reconstructions among candidates.

    Args:
        clients: Each client's reconstructions, as they are paired for each distance.
        candidates: Images that nobody trained on; None if there are none.

    Returns:
        The scores; None without reconstructions, or with fewer candidates than 99.
    """
    if not clients or candidates is None or not candidates.sizes:
        return None
    ranks = {
        name: _ranks([client[name] for client in clients], candidates, name)
        for name in DISTANCES
    }
    in_class = {
        name: candidates.of_classes(
            torch.cat([client[name].classes for client in clients])
        )
        for name in DISTANCES
    }
    paired = [client["raw"] for client in clients]
    choices = torch.cat([torch.full((len(p),), p.choices) for p in paired])
    num_images = len({row for images in paired for row in images.rows})
    return CandidateScores(
        candidates.num_images,
        [
            RankScores(
                size=size,
                ranks={name: rank[:, column] for name, rank in ranks.items()},
                in_class={name: count[:, column] for name, count in in_class.items()},
                choices=choices,
                num_images=min(num_images, len(choices)),
            )
            for column, size in enumerate(candidates.sizes)
        ],
    )


def _ranks(
    clients: Sequence[PairedImages], candidates: Candidates, distance: Distance
) -> Tensor:
    """Return i64[R,S] of all clients."""
    return torch.cat(
        [
            ranks_among(images, originals, candidates, distance)
            for images, originals in _blocks(clients, candidates.statistics)
        ]
    )


def _blocks(
    clients: Sequence[PairedImages], statistics: ChannelStatistics
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield reconstructions and originals of several clients, not too many at once."""
    images: list[Tensor] = []
    originals: list[Tensor] = []
    for client in clients:
        for start in range(0, len(client), MAX_ROWS):
            part = client.images[start : start + MAX_ROWS]
            if images and sum(map(len, images)) + len(part) > MAX_ROWS:
                yield torch.cat(images), torch.cat(originals)
                images, originals = [], []
            images.append(part)
            originals.append(client.originals(start, statistics))
    if images:
        yield torch.cat(images), torch.cat(originals)
