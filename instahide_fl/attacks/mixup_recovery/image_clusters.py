"""Encodings with public images: links found class by class, then improved together.

A soft label says which classes an encoding has, and with which coefficients. Among the
encodings that have a class, those that share an image of it form a cluster. Distances
are those of pixels decorrelated by the covariance of public images, in which the public
part is as strong in every direction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

CERTAIN_HALF = 0.5  # clusters are made from the encodings of larger coefficient
STARTS = 10  # of k-means
ROUNDS = 12  # of links and images in turn, at most
REPAIRS = 60  # clusters split and others merged, at most
PRIVATE_VARIANCE = 3.0  # of decorrelated pixels, against that of public images: 1

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Links:
    """Which cluster, that is image, each encoding has of its two classes.

    Attributes:
        centres: f64[m,r], decorrelated images.
        classes: i64[m], of each.
        chosen: i64[E,2], clusters.
        weights: f64[E,2], coefficients.
        loss: squared distance that is left, each encoding over its public variance.
    """

    centres: Floats
    classes: Indices
    chosen: Indices
    weights: Floats
    loss: float


@dataclass(frozen=True)
class Evidence:
    """What is known of encodings that have two classes.

    Attributes:
        points: f64[E,r], decorrelated encodings.
        classes: i64[E,2], ascending.
        weights: f64[E,2], their coefficients.
    """

    points: Floats
    classes: Indices
    weights: Floats

    @property
    def certainty(self) -> Floats:
        """f64[E]: one over the variance of the public part, up to a factor."""
        return np.asarray(1 / np.maximum(1 - self.weights.sum(1), 0.05) ** 2)


def images_of_classes(soft_targets: Floats, images: int) -> Indices:
    """Estimate how many of a client's images each class has.

    Args:
        soft_targets: f64[E,K].
        images: n.

    Returns:
        i64[K]; a class that was seen has one at least.
    """
    share = soft_targets.sum(0) / soft_targets.sum()
    whole = np.maximum(np.round(images * share), share > 0)
    return np.asarray(whole, np.int64)


def find_links(evidence: Evidence, per_class: Indices, seed: int) -> Links:
    """Cluster encodings by class, then improve links and images in turn.

    Args:
        evidence: of E encodings.
        per_class: i64[K], images of each class.
        seed: of k-means.
    """
    classes = np.repeat(np.arange(len(per_class)), per_class)
    centres = np.zeros((len(classes), evidence.points.shape[1]))
    for number in np.flatnonzero(per_class):
        centres[classes == number] = _clusters(
            evidence, int(number), int(per_class[number]), seed
        )
    start = Links(centres, classes, evidence.classes, evidence.weights, np.inf)
    links = _improve(start, evidence)
    for _ in range(REPAIRS):
        tried = _repaired(links, evidence, seed)
        if tried is None:
            break
        tried = _improve(tried, evidence)
        if tried.loss >= links.loss:
            break
        links = tried
    return links


def _clusters(evidence: Evidence, number: int, count: int, seed: int) -> Floats:
    from sklearn.cluster import KMeans

    row, side = np.nonzero(evidence.classes == number)
    weight = evidence.weights[row, side]
    certain = weight >= np.quantile(weight, CERTAIN_HALF) if len(row) else weight > 0
    row, weight = row[certain], weight[certain]
    centres = np.zeros((count, evidence.points.shape[1]))
    count = min(count, len(row))
    if count:
        means = KMeans(count, n_init=STARTS, random_state=seed)
        means.fit(evidence.points[row] / weight[:, None], sample_weight=weight**2)
        centres[:count] = means.cluster_centers_
    return centres


def _improve(links: Links, evidence: Evidence) -> Links:
    for _ in range(ROUNDS):
        links, before = _linked(links, evidence), links
        if before.loss < np.inf and (links.chosen == before.chosen).all():
            break
        links = replace(links, centres=_solved(links, evidence))
    return links


def _linked(links: Links, evidence: Evidence) -> Links:
    """Choose for each encoding the pair of clusters, of its classes, that fits best."""
    products = evidence.points @ links.centres.T
    inner = links.centres @ links.centres.T
    square = np.diag(inner)
    chosen = np.empty_like(evidence.classes)
    best = np.empty(len(chosen))
    for first, second in np.unique(evidence.classes, axis=0):
        row = np.flatnonzero((evidence.classes == (first, second)).all(1))
        left = np.flatnonzero(links.classes == first)
        right = np.flatnonzero(links.classes == second)
        a, b = evidence.weights[row].T[:, :, None]
        of_left = a**2 * square[left] - 2 * a * products[np.ix_(row, left)]
        of_right = b**2 * square[right] - 2 * b * products[np.ix_(row, right)]
        both = 2 * (a * b)[:, :, None] * inner[np.ix_(left, right)]
        cost = (of_left[:, :, None] + of_right[:, None, :] + both).reshape(len(row), -1)
        place = cost.argmin(1)
        chosen[row, 0] = left[place // len(right)]
        chosen[row, 1] = right[place % len(right)]
        best[row] = cost[np.arange(len(row)), place]
    best += (evidence.points**2).sum(1)
    loss = float((best * evidence.certainty).sum())
    return replace(links, chosen=chosen, loss=loss)


def _solved(links: Links, evidence: Evidence) -> Floats:
    """Return the centres that fit the links best, by ridge regression."""
    mixing = np.zeros((len(links.chosen), len(links.centres)))
    np.put_along_axis(mixing, links.chosen, evidence.weights, 1)
    weighted = evidence.certainty[:, None] * mixing
    normal = weighted.T @ mixing + np.eye(mixing.shape[1]) / PRIVATE_VARIANCE
    return np.asarray(np.linalg.solve(normal, weighted.T @ evidence.points))


def _repaired(links: Links, evidence: Evidence, seed: int) -> Links | None:
    """Split the cluster of two images, and merge two of one; None if none looks so."""
    most, repair = 0.0, None
    for number in np.unique(links.classes):
        own = np.flatnonzero(links.classes == number)
        splits = [_split(int(one), links, evidence, seed) for one in own]
        for split, (gain, halves) in zip(own, splits, strict=True):
            for kept, dropped in combinations(own[own != split], 2):
                saved = gain - _merging_cost(kept, dropped, links, evidence)
                if saved > most:
                    most, repair = saved, (kept, dropped, split, halves)
    if repair is None:
        return None
    kept, dropped, split, halves = repair
    centres = links.centres.copy()
    sizes = _sizes(links, evidence)[[kept, dropped]] + 1e-9
    centres[kept] = sizes @ centres[[kept, dropped]] / sizes.sum()
    centres[split], centres[dropped] = halves
    return replace(links, centres=centres, loss=np.inf)


def _sizes(links: Links, evidence: Evidence) -> Floats:
    weight = (evidence.certainty[:, None] * evidence.weights**2).ravel()
    sizes = np.bincount(links.chosen.ravel(), weight, len(links.centres))
    return np.asarray(sizes, np.float64)


def _merging_cost(one: int, other: int, links: Links, evidence: Evidence) -> float:
    a, b = _sizes(links, evidence)[[one, other]]
    apart = links.centres[one] - links.centres[other]
    return float(a * b / max(a + b, 1e-9) * (apart @ apart))


def _split(
    number: int, links: Links, evidence: Evidence, seed: int
) -> tuple[float, Floats]:
    """Return how much nearer two centres would be than one, and the two."""
    from sklearn.cluster import KMeans

    row, side = np.nonzero(links.chosen == number)
    if len(row) < 4:
        return 0.0, np.stack([links.centres[number]] * 2)
    other = links.chosen[row, 1 - side]
    weight = evidence.weights[row, side]
    rest = evidence.weights[row, 1 - side, None] * links.centres[other]
    points = (evidence.points[row] - rest) / weight[:, None]
    importance = evidence.certainty[row] * weight**2
    means = KMeans(2, n_init=2, random_state=seed).fit(points, sample_weight=importance)
    centre = importance @ points / importance.sum()
    alone = float(importance @ ((points - centre) ** 2).sum(1))
    return alone - float(means.inertia_), np.asarray(means.cluster_centers_)
