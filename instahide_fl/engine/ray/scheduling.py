"""Which worker runs which clients of a round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FORGETTING = 0.9  # what a round's measurements still count a round later
TOLERANCE = 1.05  # longest worker's load, relative to the best possible
FINEST = 64  # blocks per worker at most, before balance is given up


@dataclass
class ClientCosts:
    """Predicts how long clients take, from their images and what was measured so far.

    A line is fitted to seconds over images by least squares; until then, and where all
    clients have the same number of images, cost is proportional to images.
    """

    weight: float = 0.0
    images: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def forget(self) -> None:
        """Let what was measured so far count less: call it once a round."""
        self.weight *= FORGETTING
        self.images *= FORGETTING
        self.seconds *= FORGETTING
        self.squares *= FORGETTING
        self.products *= FORGETTING

    def observe(self, images: int, seconds: float) -> None:
        """Take in that a client with so many images took so long."""
        self.weight += 1
        self.images += images
        self.seconds += seconds
        self.squares += images * images
        self.products += images * seconds

    def predict(self, images: int) -> float:
        """Return the expected cost: in seconds once measured, relative before."""
        if self.weight == 0 or self.seconds <= 0:
            return float(max(1, images))
        mean, average = self.images / self.weight, self.seconds / self.weight
        spread = self.squares / self.weight - mean * mean
        if spread <= 1e-3 * mean * mean:
            return average * max(1, images) / max(1.0, mean)
        slope = (self.products / self.weight - mean * average) / spread
        # Noise must not make a larger client cheaper, nor any client free.
        slope = max(0.0, min(slope, average / mean if mean else 0.0))
        return average + slope * (images - mean)


def divide(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Divide the positions 0, 1, 2, ... of a cohort among workers.

    Longest processing time first (Graham 1969): the most expensive piece goes to the
    worker with the least work so far. Pieces are subtrees of the tree that updates are
    summed in (`aggregation/reduction.py`), as large as balance allows, because a worker
    sends one sum back for each; neighbours go to the same worker where that balances
    as well, because it adds them up.

    Args:
        costs: of each position, positive.
        workers: at least 1.

    Returns:
        For each worker the positions it runs, ascending; a worker's list may be empty.
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
        if share <= 1 / FINEST:
            return plan
        share /= 2


def _subtrees(costs: Sequence[float], limit: float) -> Iterator[tuple[float, range]]:
    """Yield the largest subtrees that cost at most `limit`, or are single positions."""
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    waiting = [(0, 1 << (len(costs) - 1).bit_length())]
    while waiting:
        start, end = waiting.pop()
        present = range(start, min(end, len(costs)))
        cost = before[present.stop] - before[start] if present else 0.0
        if not present:
            continue
        if cost <= limit or end - start == 1:
            yield cost, present
        else:
            middle = (start + end) // 2
            waiting += [(middle, end), (start, middle)]


def _in_order(
    pieces: Sequence[tuple[float, range]], workers: int
) -> tuple[list[list[int]], float]:
    """Cut the sequence of pieces into one stretch a worker, of about equal cost."""
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
    """Return each worker's positions, and the longest worker's load."""
    loads = [0.0] * workers
    plan: list[list[int]] = [[] for _ in range(workers)]
    for cost, positions in sorted(pieces, key=lambda piece: -piece[0]):
        least = loads.index(min(loads))
        loads[least] += cost
        plan[least].extend(positions)
    return [sorted(positions) for positions in plan], max(loads)
