"""Group the label entries of each class by the image they show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.attacks.carlini.label_entries import LabelEntries

RESTARTS = 20  # of k-means
MIN_ENTRIES = 6  # of an image; fewer make no cluster


@dataclass(frozen=True)
class Clusters:
    """One cluster of label entries for each private image.

    Attributes:
        classes: i64[n], the class of each cluster, ascending.
        scores: f32[L,n], how much each label entry looks like each image: cosines;
            minus infinity for images of another class.
    """

    classes: Tensor
    scores: Tensor


def cluster(
    entries: LabelEntries,
    vectors: Tensor,
    used: Tensor,
    count: int,
    rng: np.random.Generator,
) -> Clusters:
    """Find the clusters of each class by spectral clustering.

    The leading eigenvectors of the similarities of a class, as many as images, then
    weighted k-means in them (Ng, Jordan and Weiss, 2001). Entries count by their
    coefficient: an image with a small one hardly shows.

    Args:
        entries: The label entries of one client.
        vectors: f32[E,d], one for each encoding; scalar products are similarities.
        used: bool[E], encodings to find clusters with; the others are placed in them.
        count: The number n of images of the client; 0 estimates it from the
            eigenvalues.
        rng: The generator of starting points.
    """
    counts = entries.images_of_each_class(count).tolist() if count else None
    classes, columns = [], []
    # Classes ascend, as each draws from `rng` in turn.
    for label in torch.unique(entries.classes).tolist():
        members = (entries.classes == label).nonzero()[:, 0]
        encodings = entries.encodings[members]
        class_entries = _ClassEntries(
            vectors[encodings], entries.coefficients[members], used[encodings]
        )
        if not class_entries.max_images:
            continue
        images = class_entries.estimate(rng) if counts is None else counts[label]
        scores = class_entries.scores(min(images, class_entries.max_images), rng)
        all_scores = torch.full((len(entries), scores.shape[1]), float("-inf"))
        all_scores[members] = scores
        columns.append(all_scores)
        classes += [label] * scores.shape[1]
    return Clusters(torch.tensor(classes), torch.cat(columns, 1))


class _ClassEntries:
    """The label entries of one class, with the vectors of their encodings."""

    def __init__(self, vectors: Tensor, weights: Tensor, used: Tensor) -> None:
        self.weights = weights
        self.weighted = vectors * weights[:, None]
        self.used = used
        self.max_images = int(used.sum()) // MIN_ENTRIES

    def estimate(self, rng: np.random.Generator) -> int:
        """Return the number of images: that of eigenvalues before the largest drop."""
        values, _ = self._leading(self.max_images + 1, rng)
        if len(values) < 2:
            return 1
        return int((values[:-1] / values[1:]).argmax()) + 1

    def scores(self, count: int, rng: np.random.Generator) -> Tensor:
        """Return how much each entry looks like each image, f32[L,count]."""
        from sklearn.cluster import KMeans

        values, directions = self._leading(count, rng)
        # Entries that were not used are placed by their similarity to those that were.
        # A used one takes no account of its similarity with itself, as in `_leading`.
        weighted = self.weighted[self.used]
        products = self.weighted @ (weighted.T @ directions)
        products[self.used] -= weighted.square().sum(1, keepdim=True) * directions
        embedded = F.normalize(
            products / values.sqrt() / self.weights.clamp_min(1e-6)[:, None]
        )
        squares = self.weights.square().numpy()
        chosen = self.used.numpy()
        seed = int(rng.integers(2**31))
        means = KMeans(count, n_init=RESTARTS, random_state=seed).fit(
            embedded.numpy()[chosen], sample_weight=squares[chosen]
        )
        centres = torch.from_numpy(means.cluster_centers_).float()
        return embedded @ F.normalize(centres).T

    def _leading(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the largest eigenvalues of the similarities, and their vectors.

        The similarity of an entry with itself is set to 0: it would say nothing.
        """
        from scipy.sparse.linalg import LinearOperator, eigsh

        vectors = self.weighted[self.used].numpy()
        diagonal = np.square(vectors).sum(1)

        # The matrix of similarities, V V' without its diagonal, is never formed.
        def multiply(vector: NDArray[np.float32]) -> NDArray[np.float32]:
            vector = vector.reshape(-1)  # eigsh passes [L] or [L,1]
            product: NDArray[np.float32] = (
                vectors @ (vectors.T @ vector) - diagonal * vector
            )
            return product

        size = len(vectors)
        operator = LinearOperator((size, size), matvec=multiply, dtype=np.float32)
        start = rng.standard_normal(size, np.float32)
        values, directions = eigsh(operator, min(count, size - 1), which="LA", v0=start)
        order = np.argsort(-values)
        return (
            torch.from_numpy(values[order].copy()).clamp_min(1e-9),
            torch.from_numpy(directions[:, order].copy()),
        )


def nearest_entries(scores: Tensor, coefficients: Tensor, count: int) -> Tensor:
    """Return for each image the label entries that show most of it.

    Args:
        scores: f32[L,n]; minus infinity where an entry cannot show an image.
        coefficients: f32[L].
        count: The number m of entries of each image.

    Returns:
        i64[n,m]; -1 where there are fewer.
    """
    best = (scores * coefficients[:, None]).topk(min(count, len(scores)), dim=0)
    nearest = torch.where(best.values.isfinite(), best.indices, -1).T  # [m,n] -> [n,m]
    return F.pad(nearest, (0, count - nearest.shape[1]), value=-1)
