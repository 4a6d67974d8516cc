"""Divide the clients of a round among workers so that all end at about one time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

DECAY = 0.9  # of the weight of measurements, from one round to the next
TOLERANCE = 1.05  # the longest worker's load, relative to the best possible
MAX_CALL_BATCHES = 4  # of an evaluation, after which a worker is given more
MAX_PIECES = 64  # per worker, after which no better balance is sought


@dataclass
class ClientCosts:
    """Predicts how long clients take, from their images and earlier measurements.

    A line is fitted to seconds over images by least squares. Without measurements, or
    where all clients have the same number of images, cost is proportional to images.

    Attributes:
        weight: The weighted number of measurements.
        images: The weighted sum of the clients' numbers of images.
        seconds: The weighted sum of the seconds they took.
        squares: The weighted sum of the squared numbers of images.
        products: The weighted sum of images times seconds.
    """

    weight: float = 0.0
    images: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def forget(self) -> None:
        """Reduce the weight of all measurements; call it once a round."""
        self.weight *= DECAY
        self.images *= DECAY
        self.seconds *= DECAY
        self.squares *= DECAY
        self.products *= DECAY

    def observe(self, images: int, seconds: float) -> None:
        """Add the measurement of one client."""
        self.weight += 1
        self.images += images
        self.seconds += seconds
        self.squares += images * images
        self.products += images * seconds

    def predict(self, images: int) -> float:
        """Return the expected cost: in seconds once measured, in images before."""
        if self.weight == 0 or self.seconds <= 0:
            return float(max(1, images))
        mean_images = self.images / self.weight
        mean_seconds = self.seconds / self.weight
        variance = self.squares / self.weight - mean_images * mean_images
        if variance <= 1e-3 * mean_images * mean_images:
            # Too alike to fit a line.
            return mean_seconds * max(1, images) / max(1.0, mean_images)
        covariance = self.products / self.weight - mean_images * mean_seconds
        slope = covariance / variance
        # Noise must not make a larger client cheaper, nor any client free.
        slope = max(0.0, min(slope, mean_seconds / mean_images if mean_images else 0.0))
        return mean_seconds + slope * (images - mean_images)


def divide(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Divide the positions 0, 1, 2, ... of a cohort among workers.

    Longest processing time first (Graham 1969): the most expensive piece goes to the
    worker with the least work so far. Pieces are subtrees of the tree that updates are
    summed in (`aggregation/reduction.py`), as large as balance allows, because a worker
    sends one sum back for each. Neighbours go to the same worker where that balances
    as well, because that worker adds them up.

    Args:
        costs: The positive cost of each position.
        workers: The number of workers, at least 1.

    Returns:
        For each worker the positions that it runs, in ascending order; a worker's list
        may be empty.
    """
    if not costs:
        return [[] for _ in range(workers)]
    ideal = max(sum(costs) / workers, max(costs))
    share = 1.0
    while True:
        pieces = list(_subtrees(costs, ideal * share * TOLERANCE))
        for assign in (_in_order, _longest_first):
            plan, longest = assign(pieces, workers)
            if longest <= TOLERANCE * ideal:
                return plan
        if share <= 1 / MAX_PIECES:
            return plan
        share /= 2


def evaluation_calls(batches: int, workers: int) -> Iterator[range]:
    """Divide an evaluation into calls: few, but enough that no worker waits for long.

    Args:
        batches: The number of batches.
        workers: The number of workers, at least 1.

    Yields:
        The batches of each call, the last ones first: those may be of encodings, which
        take longer than the others.
    """
    length = min(MAX_CALL_BATCHES, -(-batches // workers))
    for stop in range(batches, 0, -max(1, length)):
        yield range(max(0, stop - length), stop)


def _subtrees(costs: Sequence[float], limit: float) -> Iterator[tuple[float, range]]:
    """Yield the largest subtrees that cost at most `limit`, or are single positions."""
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    # The root covers the next power of two; positions beyond the last one are empty.
    stack = [(0, 1 << (len(costs) - 1).bit_length())]
    while stack:
        start, end = stack.pop()
        positions = range(start, min(end, len(costs)))
        cost = before[positions.stop] - before[start] if positions else 0.0
        if not positions:
            continue
        if cost <= limit or end - start == 1:
            yield cost, positions
        else:
            middle = (start + end) // 2
            stack += [(middle, end), (start, middle)]


def _in_order(
    pieces: Sequence[tuple[float, range]], workers: int
) -> tuple[list[list[int]], float]:
    """Cut the sequence of pieces into one stretch a worker, of about equal cost.

    Returns:
        Each worker's positions, and the longest worker's load.
    """
    share = sum(cost for cost, _ in pieces) / workers
    loads = [0.0] * workers
    plan: list[list[int]] = [[] for _ in range(workers)]
    before = 0.0
    for cost, positions in pieces:
        worker = min(workers - 1, int((before + cost / 2) / share))
        before += cost
        loads[worker] += cost
        plan[worker].extend(positions)
    return plan, max(loads)


def _longest_first(
    pieces: Sequence[tuple[float, range]], workers: int
) -> tuple[list[list[int]], float]:
    """Give each piece, the most expensive first, to the worker with the least work.

    Returns:
        Each worker's positions, and the longest worker's load.
    """
    loads = [0.0] * workers
    plan: list[list[int]] = [[] for _ in range(workers)]
    for cost, positions in sorted(pieces, key=lambda piece: -piece[0]):
        least = loads.index(min(loads))
        loads[least] += cost
        plan[least].extend(positions)
    return [sorted(positions) for positions in plan], max(loads)
