"""Group the slots of each class by the image they show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.attacks.carlini.label_slots import Slots

RESTARTS = 20  # of k-means
MIN_SLOTS = 6  # of an image; fewer make no cluster


@dataclass(frozen=True)
class Clusters:
    """One cluster for each private image.

    Attributes:
        classes: i64[n], ascending.
        scores: f32[S,n], how much each slot looks like each image: cosines; minus
            infinity for images of another class.
    """

    classes: Tensor
    scores: Tensor


def cluster(
    slots: Slots, vectors: Tensor, used: Tensor, count: int, rng: np.random.Generator
) -> Clusters:
    """Find the clusters of each class: spectral clustering.

    The leading eigenvectors of the similarities of a class, one for each image, then
    weighted k-means in them (Ng, Jordan and Weiss, 2001). Slots count by their
    coefficient: what little there is of an image hardly shows.

    Args:
        slots: of one client.
        vectors: f32[E,d], of its encodings; their products are similarities.
        used: bool[E], encodings to find clusters with; the others are placed in them.
        count: n, images of the client; 0 estimates it from the eigenvalues.
        rng: draws starting points.
    """
    counts = slots.images_of_each_class(count).tolist() if count else None
    classes, columns = [], []
    for number in torch.unique(slots.classes).tolist():
        own = (slots.classes == number).nonzero()[:, 0]
        some = used[slots.encodings[own]]
        groups = _Class(vectors[slots.encodings[own]], slots.coefficients[own], some)
        if not groups.most:
            continue
        wanted = groups.estimate(rng) if counts is None else counts[number]
        found = groups.scores(min(wanted, groups.most), rng)
        everywhere = torch.full((len(slots), found.shape[1]), float("-inf"))
        everywhere[own] = found
        columns.append(everywhere)
        classes += [number] * found.shape[1]
    return Clusters(torch.tensor(classes), torch.cat(columns, 1))


class _Class:
    """The slots of one class."""

    def __init__(self, vectors: Tensor, weights: Tensor, used: Tensor) -> None:
        self.weights = weights
        self.weighted = vectors * weights[:, None]
        self.used = used
        self.most = int(used.sum()) // MIN_SLOTS

    def estimate(self, rng: np.random.Generator) -> int:
        """Return how many images there are: before the largest drop of eigenvalues."""
        values, _ = self._leading(self.most + 1, rng)
        if len(values) < 2:
            return 1
        return int((values[:-1] / values[1:]).argmax()) + 1

    def scores(self, count: int, rng: np.random.Generator) -> Tensor:
        """Return f32[S,count]."""
        from sklearn.cluster import KMeans

        values, directions = self._leading(count, rng)
        # Slots that were not used are placed by their similarity to those that were.
        own = self.weighted[self.used]
        products = self.weighted @ (own.T @ directions)
        products[self.used] -= own.square().sum(1, keepdim=True) * directions
        places = F.normalize(
            products / values.sqrt() / self.weights.clamp_min(1e-6)[:, None]
        )
        squares = self.weights.square().numpy()
        chosen = self.used.numpy()
        seed = int(rng.integers(2**31))
        means = KMeans(count, n_init=RESTARTS, random_state=seed).fit(
            places.numpy()[chosen], sample_weight=squares[chosen]
        )
        centres = torch.from_numpy(means.cluster_centers_).float()
        return places @ F.normalize(centres).T

    def _leading(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the largest eigenvalues of the similarities, and their vectors.

        The similarity of a slot with itself is 0: it would say nothing.
        """
        from scipy.sparse.linalg import LinearOperator, eigsh

        vectors = self.weighted[self.used].numpy()
        itself = np.square(vectors).sum(1)

        def multiply(one: NDArray[np.float32]) -> NDArray[np.float32]:
            one = one.reshape(-1)
            product: NDArray[np.float32] = vectors @ (vectors.T @ one) - itself * one
            return product

        size = len(vectors)
        operator = LinearOperator((size, size), matvec=multiply, dtype=np.float32)
        start = rng.standard_normal(size, np.float32)
        values, found = eigsh(operator, min(count, size - 1), which="LA", v0=start)
        order = np.argsort(-values)
        return (
            torch.from_numpy(values[order].copy()).clamp_min(1e-9),
            torch.from_numpy(found[:, order].copy()),
        )


def nearest_slots(scores: Tensor, coefficients: Tensor, most: int) -> Tensor:
    """Return for each image the slots that show most of it.

    Args:
        scores: f32[S,n]; minus infinity where a slot cannot show an image.
        coefficients: f32[S].
        most: m.

    Returns:
        i64[n,m]; -1 where there are fewer.
    """
    found = (scores * coefficients[:, None]).topk(min(most, len(scores)), dim=0)
    nearest = torch.where(found.values.isfinite(), found.indices, -1).T
    return F.pad(nearest, (0, most - nearest.shape[1]), value=-1)
