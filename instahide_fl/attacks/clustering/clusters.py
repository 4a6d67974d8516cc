"""Group the slots of each class by the image they show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from instahide_fl.attacks.clustering.slots import Slots

GROUP = 30  # slots in a dense group to start from
GROWN = 300  # groups grown for each class
OVERLAP = 0.4  # of two groups, from which on they are one
RESTARTS = 20
ROUNDS = 25


@dataclass(frozen=True)
class Clusters:
    """One cluster for each private image.

    Attributes:
        classes: i64[n], ascending.
        centres: f32[n,d], rows of length 1.
    """

    classes: Tensor
    centres: Tensor

    def scores(self, slots: Slots, embedding: Tensor) -> Tensor:
        """Return how much each slot looks like each image, f32[S,n].

        Cosines; minus infinity for images of another class.
        """
        other = slots.classes[:, None] != self.classes
        return (embedding @ self.centres.T).masked_fill(other, float("-inf"))


def cluster(
    slots: Slots, embedding: Tensor, counts: Tensor, rng: np.random.Generator
) -> Clusters:
    """Find the clusters: dense groups, then weighted spherical k-means from several.

    A slot counts by its coefficient: what little there is of an image hardly shows.

    Args:
        slots: of one client.
        embedding: f32[S,d], of these slots.
        counts: i64[K], images of each class.
        rng: draws starting points.
    """
    classes, centres = [], []
    for number, count in enumerate(counts.tolist()):
        own = (slots.classes == number).nonzero()[:, 0]
        if not count or not len(own):
            continue
        found = _of_one_class(
            embedding[own], slots.coefficients[own], min(count, len(own)), rng
        )
        centres.append(found)
        classes += [number] * len(found)
    return Clusters(torch.tensor(classes), torch.cat(centres))


def _of_one_class(
    vectors: Tensor, weights: Tensor, count: int, rng: np.random.Generator
) -> Tensor:
    """Return centres, f32[count,d], of the best of several starts."""
    chance = weights.double().square().numpy()
    starts = [
        torch.from_numpy(rng.choice(len(vectors), count, False, chance / chance.sum()))
        for _ in range(RESTARTS)
    ]
    candidates = [vectors[start] for start in starts]
    dense = dense_groups(vectors, weights, count)
    groups = functional.normalize(vectors[dense].mean(1), dim=1)
    # Images that no group was found for start at random.
    candidates.append(torch.cat([groups, candidates[0]])[:count])
    moved = [_k_means(vectors, weights, start) for start in candidates]
    fits = [float(((vectors @ one.T).amax(1) * weights).sum()) for one in moved]
    return moved[int(np.argmax(fits))]


def _k_means(vectors: Tensor, weights: Tensor, centres: Tensor) -> Tensor:
    weighted = vectors * weights[:, None]
    for _ in range(ROUNDS):
        nearest = (vectors @ centres.T).argmax(1)
        total = torch.zeros_like(centres).index_add_(0, nearest, weighted)
        empty = total.norm(dim=1, keepdim=True) == 0
        centres = functional.normalize(torch.where(empty, centres, total), dim=1)
    return centres


def dense_groups(
    vectors: Tensor, weights: Tensor, most: int, size: int = GROUP
) -> Tensor:
    """Grow cliques in the graph of similarities, and keep those that overlap little.

    Source: Carlini et al. 2021; theirs grow from random encodings, these from the slots
    with the largest coefficients.

    Args:
        vectors: f32[S,d], rows of length 1, of one class.
        weights: f32[S].
        most: groups wanted.
        size: slots of a group; fewer where there are fewer.

    Returns:
        i64[m,size] with m <= most, densest first.
    """
    size = min(size, len(vectors))
    similarity = vectors @ vectors.T
    similarity = (similarity - similarity.mean()) / similarity.std().clamp_min(1e-6)
    similarity.fill_diagonal_(0)
    grown = weights.argsort(descending=True, stable=True)[:GROWN, None]
    summed = similarity[grown[:, 0]].scatter(1, grown, float("-inf"))
    density = torch.zeros(len(grown))
    for _ in range(size - 1):
        best = summed.max(1)
        density += best.values
        added = best.indices[:, None]
        grown = torch.cat([grown, added], 1)
        summed = (summed + similarity[added[:, 0]]).scatter(1, grown, float("-inf"))
    kept: list[Tensor] = []
    for row in density.argsort(descending=True, stable=True):
        shared = [torch.isin(grown[row], one).float().mean() for one in kept]
        if all(float(share) < OVERLAP for share in shared):
            kept.append(grown[row])
        if len(kept) == most:
            break
    return torch.stack(kept)


def nearest_slots(scores: Tensor, most: int) -> Tensor:
    """Return for each image the slots with the highest scores.

    Args:
        scores: f32[S,n]; minus infinity where a slot cannot show an image.
        most: m.

    Returns:
        i64[n,m]; -1 where there are fewer.
    """
    found = scores.topk(min(most, len(scores)), dim=0)
    nearest = torch.where(found.values.isfinite(), found.indices, -1).T
    return functional.pad(nearest, (0, most - nearest.shape[1]), value=-1)
