"""Link encodings that mix public images: cluster them by class, then refine all links.

A soft label says which classes an encoding has, and with which coefficients. Among the
encodings of a class, those that share an image of it form a cluster. Distances are
taken between pixels that were decorrelated by the covariance of public images: there,
the public part of an encoding is equally strong in every direction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

CERTAIN_QUANTILE = 0.5  # only encodings with a coefficient above it start the clusters
STARTS = 10  # starts of k-means
MAX_ROUNDS = 12  # rounds of updating links, then images
MAX_REPAIRS = 60  # times that a cluster is split and two others are merged
PRIVATE_VARIANCE = 3.0  # variance of decorrelated private pixels; public ones have 1

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Links:
    """The cluster, that is the image, which each encoding has of its two classes.

    Attributes:
        centres: The decorrelated image of each of m clusters, f64[m,r].
        classes: The class of each cluster, i64[m].
        chosen: The two clusters of each encoding, i64[E,2].
        weights: The coefficients of the two, f64[E,2].
        loss: The sum of squared residuals of encodings, each divided by the variance of
            its public part.
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
        points: The decorrelated encodings, f64[E,r].
        classes: The two classes of each, ascending, i64[E,2].
        weights: The coefficients of the two, f64[E,2].
    """

    points: Floats
    classes: Indices
    weights: Floats

    @property
    def certainty(self) -> Floats:
        """The inverse variance of each public part, up to a factor, f64[E]."""
        return np.asarray(1 / np.maximum(1 - self.weights.sum(1), 0.05) ** 2)


def images_of_classes(soft_targets: Floats, images: int) -> Indices:
    """Estimate how many of a client's images each class has.

    Args:
        soft_targets: The soft labels of E encodings, f64[E,K].
        images: The number of images of the client.

    Returns:
        The number of images of each class, i64[K]; at least 1 for a class that any
        encoding has.
    """
    share = soft_targets.sum(0) / soft_targets.sum()
    counts = np.maximum(np.round(images * share), share > 0)
    return np.asarray(counts, np.int64)


def find_links(evidence: Evidence, per_class: Indices, seed: int) -> Links:
    """Cluster encodings by class, then improve links and images in turn.

    Args:
        evidence: What is known of E encodings.
        per_class: The number of images of each class, i64[K].
        seed: The seed of k-means.
    """
    classes = np.repeat(np.arange(len(per_class)), per_class)
    centres = np.zeros((len(classes), evidence.points.shape[1]))
    for number in np.flatnonzero(per_class):
        centres[classes == number] = _clusters(
            evidence, int(number), int(per_class[number]), seed
        )
    start = Links(centres, classes, evidence.classes, evidence.weights, np.inf)
    links = _improve(start, evidence)
    for _ in range(MAX_REPAIRS):
        repaired = _repaired(links, evidence, seed)
        if repaired is None:
            break
        repaired = _improve(repaired, evidence)
        if repaired.loss >= links.loss:
            break
        links = repaired
    return links


def _clusters(evidence: Evidence, number: int, count: int, seed: int) -> Floats:
    """Return `count` cluster centres of the encodings that have a class, f64[count,r].

    Rows beyond the number of such encodings are 0.
    """
    from sklearn.cluster import KMeans

    row, side = np.nonzero(evidence.classes == number)
    weight = evidence.weights[row, side]
    certain = (
        weight >= np.quantile(weight, CERTAIN_QUANTILE) if len(row) else weight > 0
    )
    row, weight = row[certain], weight[certain]
    centres = np.zeros((count, evidence.points.shape[1]))
    count = min(count, len(row))
    if count:
        means = KMeans(count, n_init=STARTS, random_state=seed)
        means.fit(evidence.points[row] / weight[:, None], sample_weight=weight**2)
        centres[:count] = means.cluster_centers_
    return centres


def _improve(links: Links, evidence: Evidence) -> Links:
    """Update links and images in turn, until no link changes."""
    for _ in range(MAX_ROUNDS):
        links, before = _linked(links, evidence), links
        if before.loss < np.inf and (links.chosen == before.chosen).all():
            break
        links = replace(links, centres=_solved(links, evidence))
    return links


def _linked(links: Links, evidence: Evidence) -> Links:
    """Choose, for each encoding, the best-fitting pair of clusters of its classes.

    The cost of a pair is |p - a l - b r|^2 for point p, centres l and r, and weights a
    and b. Multiplied out, only products of centres and points are needed; |p|^2 is the
    same for all pairs and added at the end.
    """
    products = evidence.points @ links.centres.T
    inner = links.centres @ links.centres.T
    square = np.diag(inner)
    chosen = np.empty_like(evidence.classes)
    best = np.empty(len(chosen))
    for first, second in np.unique(evidence.classes, axis=0):
        row = np.flatnonzero((evidence.classes == (first, second)).all(1))
        of_first = np.flatnonzero(links.classes == first)
        of_second = np.flatnonzero(links.classes == second)
        a, b = evidence.weights[row].T[:, :, None]  # [e,1] each
        l_terms = a**2 * square[of_first] - 2 * a * products[np.ix_(row, of_first)]
        r_terms = b**2 * square[of_second] - 2 * b * products[np.ix_(row, of_second)]
        cross = 2 * (a * b)[:, :, None] * inner[np.ix_(of_first, of_second)]
        # [e,m1,1] + [e,1,m2] + [e,m1,m2] -> [e,m1*m2], for m1 and m2 clusters
        costs = l_terms[:, :, None] + r_terms[:, None, :] + cross
        costs = costs.reshape(len(row), -1)
        pair = costs.argmin(1)
        chosen[row, 0] = of_first[pair // len(of_second)]
        chosen[row, 1] = of_second[pair % len(of_second)]
        best[row] = costs[np.arange(len(row)), pair]
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
    """Split a cluster that holds two images, and merge two that hold the same one.

    Splitting and merging within a class leaves its number of clusters unchanged.

    Returns:
        The links after the change that lowers the loss most; None if none lowers it.
    """
    best_gain, repair = 0.0, None
    for number in np.unique(links.classes):
        clusters = np.flatnonzero(links.classes == number)
        splits = [_split(int(cluster), links, evidence, seed) for cluster in clusters]
        for split, (split_gain, halves) in zip(clusters, splits, strict=True):
            for first, second in combinations(clusters[clusters != split], 2):
                gain = split_gain - _merging_cost(first, second, links, evidence)
                if gain > best_gain:
                    best_gain, repair = gain, (first, second, split, halves)
    if repair is None:
        return None
    first, second, split, halves = repair
    centres = links.centres.copy()
    sizes = _sizes(links, evidence)[[first, second]] + 1e-9
    centres[first] = sizes @ centres[[first, second]] / sizes.sum()
    centres[split], centres[second] = halves
    return replace(links, centres=centres, loss=np.inf)


def _sizes(links: Links, evidence: Evidence) -> Floats:
    """Return the total weight of the encodings in each cluster, f64[m]."""
    weight = (evidence.certainty[:, None] * evidence.weights**2).ravel()
    sizes = np.bincount(links.chosen.ravel(), weight, len(links.centres))
    return np.asarray(sizes, np.float64)


def _merging_cost(first: int, second: int, links: Links, evidence: Evidence) -> float:
    """Return how much the loss grows if two clusters become one."""
    a, b = _sizes(links, evidence)[[first, second]]
    difference = links.centres[first] - links.centres[second]
    return float(a * b / max(a + b, 1e-9) * (difference @ difference))


def _split(
    number: int, links: Links, evidence: Evidence, seed: int
) -> tuple[float, Floats]:
    """Return how much the loss falls if a cluster is split, and the two centres."""
    from sklearn.cluster import KMeans

    row, side = np.nonzero(links.chosen == number)
    if len(row) < 4:
        return 0.0, np.stack([links.centres[number]] * 2)
    other = links.chosen[row, 1 - side]
    weight = evidence.weights[row, side]
    # What an encoding shows of this cluster: the other private image is subtracted.
    rest = evidence.weights[row, 1 - side, None] * links.centres[other]
    points = (evidence.points[row] - rest) / weight[:, None]
    importance = evidence.certainty[row] * weight**2
    means = KMeans(2, n_init=2, random_state=seed).fit(points, sample_weight=importance)
    centre = importance @ points / importance.sum()
    unsplit = float(importance @ ((points - centre) ** 2).sum(1))
    return unsplit - float(means.inertia_), np.asarray(means.cluster_centers_)
