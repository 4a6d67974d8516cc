"""Sums of updates in a fixed tree, so that who adds what does not change a bit.

Floating-point sums depend on their order. Here the order is a binary tree over the
positions 0, 1, 2, ... of a round's cohort: the node (level, index) is the sum of the
positions index * 2**level up to (index + 1) * 2**level - 1, its two children added, a
missing child left out. Whoever holds a whole subtree may add it up: one process after
another, or any number of workers side by side, end at the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from instahide_fl.errors import RoundError
from instahide_fl.types import ClientUpdate

# Of a value in an update. Sums, squares and momentum of such values, which optimizers
# keep, stay far below float32's largest number (3.4e38), whatever the cohort.
MAX_UPDATE_VALUE = 1e15


@dataclass
class UpdateSum:
    """A weighted sum of updates: scale * arrays.

    Updates of the same weight are added as they are, and multiplied once in the end:
    the common case, clients of the same size, then costs one addition each.

    Attributes:
        arrays: by parameter name; float32 or wider.
        scale: what they are still to be multiplied with.
        weight: the sum of the updates' weights.
        owned: whether the arrays may be written to.
    """

    arrays: dict[str, Tensor]
    scale: float
    weight: float
    owned: bool = False

    @classmethod
    def of(cls, update: ClientUpdate, weight: float, owned: bool = False) -> UpdateSum:
        """Start a sum with one update.

        Args:
            update: any client's.
            weight: its weight; positive.
            owned: let the sum write to the update's memory, which is lost then.
        """
        arrays = {name: _wide(array) for name, array in update.arrays.items()}
        return cls(arrays, weight, weight, owned)

    def plus(self, other: UpdateSum) -> UpdateSum:
        """Add the sum of later positions; memory that may be written to is reused.

        Raises:
            RoundError: the two do not have the same arrays.
        """
        _check_alike(self.arrays, other.arrays)
        left, right = self, other
        if left.scale != right.scale:
            left._multiply()
            right._multiply()
        if not left.owned and right.owned:
            left, right = right, left  # the same bits: a + b is b + a
        for name, array in left.arrays.items():
            added = right.arrays[name]
            if left.owned and array.dtype == torch.promote_types(
                array.dtype, added.dtype
            ):
                array.add_(added)
            else:
                left.arrays[name] = array + added
        return UpdateSum(left.arrays, left.scale, left.weight + right.weight, True)

    def is_bounded(self) -> bool:
        """Tell whether all values, before scaling, are below `MAX_UPDATE_VALUE`.

        A sum is not finite as soon as one part is not.
        """
        return all(is_bounded(array) for array in self.arrays.values())

    def mean(self) -> dict[str, Tensor]:
        """Return the weighted mean by parameter name, contiguous.

        Where memory may be written to, it becomes the mean's: this is then the sum
        of one update, the mean, of weight 1.
        """
        self._multiply()
        if not self.owned:
            return {n: (a / self.weight).contiguous() for n, a in self.arrays.items()}
        for array in self.arrays.values():
            array.div_(self.weight)
        self.weight = 1
        return {n: a.contiguous() for n, a in self.arrays.items()}

    def _multiply(self) -> None:
        if self.scale == 1:
            return
        if self.owned:
            for array in self.arrays.values():
                array.mul_(self.scale)
        else:
            self.arrays = {n: a * self.scale for n, a in self.arrays.items()}
            self.owned = True
        self.scale = 1


@dataclass(frozen=True, order=True, slots=True)
class TreeNode:
    """A subtree's place in the tree."""

    level: int
    index: int


@dataclass
class TreeSum:
    """Adds up positions in the tree's order, in whatever order they come.

    It holds as many sums as there are complete subtrees that wait for a neighbour: few
    if positions come roughly in order.
    """

    nodes: dict[TreeNode, UpdateSum] = field(default_factory=dict)

    def put(self, node: TreeNode, value: UpdateSum) -> None:
        """Add a subtree's sum; `TreeNode(0, i)` is position i alone."""
        while (beside := TreeNode(node.level, node.index ^ 1)) in self.nodes:
            neighbour = self.nodes.pop(beside)
            first = node.index % 2 == 0
            value = value.plus(neighbour) if first else neighbour.plus(value)
            node = TreeNode(node.level + 1, node.index // 2)
        self.nodes[node] = value

    def total(self) -> UpdateSum | None:
        """Return the sum of all positions that came, or None if none did.

        Positions that have not come by now are taken as missing for good.
        """
        while len(self.nodes) > 1:
            lowest = min(self.nodes)
            value = self.nodes.pop(lowest)
            self.put(TreeNode(lowest.level + 1, lowest.index // 2), value)
        return next(iter(self.nodes.values()), None)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What is known of a client's update once it is part of a sum.

    Attributes:
        num_examples: images it was computed on.
        nbytes: size of its arrays.
        metrics: numbers for the log: "train_loss", "seconds".
    """

    num_examples: int
    nbytes: int
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, update: ClientUpdate) -> Contribution:
        """Describe an update."""
        nbytes = sum(array.nbytes for array in update.arrays.values())
        return cls(update.num_examples, nbytes, update.metrics)


@dataclass
class ReducedUpdates:
    """A round's updates, added up.

    Attributes:
        total: the weighted sum; None if no update was valid.
        contributions: by node id, of the valid updates.
        failures: reason by node id, of the others.
        compute_seconds: in which the round waited for clients that were computing.
        adding_seconds: in which the server added updates up.
        updates: by node id in client order, where they were to be kept.
    """

    total: UpdateSum | None
    contributions: dict[int, Contribution]
    failures: dict[int, str]
    compute_seconds: float
    adding_seconds: float
    updates: dict[int, ClientUpdate] = field(default_factory=dict)


class ReadsUpdates(Protocol):
    """Turns a client's reply into an update and its weight; can be pickled."""

    def read(self, reply: Any, check_finite: bool = True) -> ClientUpdate:
        """Check a reply (a Flower `Message`).

        Args:
            reply: of a client.
            check_finite: whether to refuse values that are not finite, or beyond
                `MAX_UPDATE_VALUE`; a caller that leaves it out must look at the sum
                (`UpdateSum.is_bounded`).

        Raises:
            InstaHideError: the client failed, or its update is not valid.
        """

    def weight(self, update: ClientUpdate) -> float:
        """Return the update's weight in the sum."""


@runtime_checkable
class ReducingGrid(Protocol):
    """A Flower `Grid` that can add up updates where they are computed.

    A grid without it hands every single update to the server, who adds them up in the
    same tree.
    """

    def send_and_reduce(
        self,
        content: Any,
        node_ids: Sequence[int],
        group_id: str,
        reader: ReadsUpdates,
        sizes: Sequence[int],
        timeout: float,
    ) -> ReducedUpdates:
        """Train one round.

        Args:
            content: what every client receives (a Flower `RecordDict`).
            node_ids: the cohort, in the order of the tree's positions.
            group_id: of the messages: the round.
            reader: checks a reply, beside the client.
            sizes: images of each client, for dividing the work.
            timeout: seconds that a client may take.
        """


def tree_mean(
    updates: Sequence[ClientUpdate], weigh: Callable[[ClientUpdate], float]
) -> dict[str, Tensor]:
    """Average updates whose positions are their places in the sequence.

    Args:
        updates: at least one; all with the same names and shapes.
        weigh: returns an update's weight.

    Returns:
        By parameter name.

    Raises:
        RoundError: there is no update, or one does not have the others' arrays.
    """
    tree = TreeSum()
    for position, update in enumerate(updates):
        tree.put(TreeNode(0, position), UpdateSum.of(update, weigh(update)))
    total = tree.total()
    if total is None:
        raise RoundError("cannot average the updates of no client")
    return total.mean()


def _wide(array: Tensor) -> Tensor:
    if array.dtype == torch.float32:
        return array
    return array.to(torch.promote_types(array.dtype, torch.float32))


def _check_alike(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    names = left.keys() | right.keys()
    if len(names) == len(left) == len(right) and all(
        array.shape == right[name].shape for name, array in left.items()
    ):
        return
    shapes = [{n: tuple(a.shape) for n, a in side.items()} for side in (left, right)]
    name = min(name for name, _ in shapes[0].items() ^ shapes[1].items())
    raise RoundError(
        f"the updates of a round disagree on {name}: {shapes[0].get(name)} and "
        f"{shapes[1].get(name)}"
    )


def is_finite(array: Tensor) -> bool:
    """Tell whether all values are finite."""
    return is_bounded(array, math.inf)


def is_bounded(array: Tensor, largest: float = MAX_UPDATE_VALUE) -> bool:
    """Tell whether all values are finite and none is larger, whatever its sign."""
    # Minimum and maximum hand on NaN and infinity, in one pass and without a mask.
    return array.numel() == 0 or all(
        math.isfinite(end.item()) and abs(end.item()) <= largest
        for end in torch.aminmax(array)
    )
