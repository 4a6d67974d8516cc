"""Sums of updates in a fixed tree, so that who adds what does not change a bit.

Floating-point addition is not associative: (a + b) + c and a + (b + c) may differ in
the last bits, so the result of a sum depends on its order. Here the order is a binary
tree over the positions 0, 1, 2, ... of a round's cohort: the node (level, index) is the
sum of the positions index * 2**level up to (index + 1) * 2**level - 1, its two children
added, a missing child left out. A process that holds all of a subtree may add it up by
itself. So one process, or any number of workers side by side, in whatever order the
replies come, end at the same bits. A plain sum from left to right has only one order,
and would have to wait for the slowest client at each position.
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

# The largest value of an update. Sums, squares and momentum of such values, which
# optimizers keep, stay far below float32's largest number (3.4e38) in any cohort.
MAX_UPDATE_VALUE = 1e15


@dataclass
class UpdateSum:
    """A weighted sum of updates: scale * arrays.

    Updates of the same weight are added as they are, and multiplied once in the end:
    the common case, clients of the same size, then costs one addition each.

    Attributes:
        arrays: The sum before scaling, by parameter name; float32 or wider.
        scale: The factor by which the arrays are still to be multiplied.
        weight: The sum of the updates' weights.
        owned: Whether the arrays may be written to.
    """

    arrays: dict[str, Tensor]
    scale: float
    weight: float
    owned: bool = False

    @classmethod
    def of(cls, update: ClientUpdate, weight: float, owned: bool = False) -> UpdateSum:
        """Start a sum with one update.

        Args:
            update: Any client's update.
            weight: The update's weight; positive.
            owned: Whether the sum may write to the update's memory, which destroys it.
        """
        arrays = {name: _wide(array) for name, array in update.arrays.items()}
        return cls(arrays, weight, weight, owned)

    def plus(self, other: UpdateSum) -> UpdateSum:
        """Add the sum of later positions; memory that may be written to is reused.

        Args:
            other: The sum to add, which must not be used any more.

        Raises:
            RoundError: the two do not have the same arrays.
        """
        _check_alike(self.arrays, other.arrays)
        target, addend = self, other
        if target.scale != addend.scale:
            target._multiply()
            addend._multiply()
        if not target.owned and addend.owned:
            # The same bits: floating-point addition is commutative, if not associative.
            target, addend = addend, target
        for name, array in target.arrays.items():
            added = addend.arrays[name]
            if target.owned and array.dtype == torch.promote_types(
                array.dtype, added.dtype
            ):
                array.add_(added)
            else:
                target.arrays[name] = array + added
        weight = target.weight + addend.weight
        return UpdateSum(target.arrays, target.scale, weight, owned=True)

    def is_bounded(self) -> bool:
        """Tell whether all values, before scaling, are below `MAX_UPDATE_VALUE`.

        One look at the sum is enough: if a part is not finite, the sum is not either.
        """
        return all(is_bounded(array) for array in self.arrays.values())

    def mean(self) -> dict[str, Tensor]:
        """Return the weighted mean by parameter name, contiguous.

        An owned sum is divided in place: it becomes the sum of one update of weight 1,
        the mean.
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
    """The root of a subtree: which positions a sum covers.

    Attributes:
        level: Height of the subtree; 0 for a single position.
        index: Number of the subtree on its level, from 0.
    """

    level: int
    index: int


@dataclass
class TreeSum:
    """Adds up positions in the tree's order, in whatever order they come.

    It holds one sum for each complete subtree that waits for its neighbour: few if
    positions come roughly in order.

    Attributes:
        nodes: The sums of the subtrees that wait.
    """

    nodes: dict[TreeNode, UpdateSum] = field(default_factory=dict)

    def put(self, node: TreeNode, value: UpdateSum) -> None:
        """Add a subtree's sum; `TreeNode(0, i)` is position i alone."""
        # Flipping the lowest bit of an index gives the other child of the same parent.
        while (sibling := TreeNode(node.level, node.index ^ 1)) in self.nodes:
            neighbour = self.nodes.pop(sibling)
            is_left = node.index % 2 == 0
            value = value.plus(neighbour) if is_left else neighbour.plus(value)
            node = TreeNode(node.level + 1, node.index // 2)
        self.nodes[node] = value

    def total(self) -> UpdateSum | None:
        """Return the sum of all positions that came, or None if none did.

        Positions that have not come by now count as missing. A subtree without a
        neighbour is its parent's sum; the lowest moves up first, so that neighbours
        that are there still meet.
        """
        while len(self.nodes) > 1:
            lowest = min(self.nodes)
            value = self.nodes.pop(lowest)
            self.put(TreeNode(lowest.level + 1, lowest.index // 2), value)
        return next(iter(self.nodes.values()), None)


@dataclass(frozen=True, slots=True)
class Contribution:
    """The figures of a client's update that are left once it is part of a sum.

    Attributes:
        num_examples: Number of images it was computed on.
        nbytes: Size of its arrays in bytes.
        metrics: Numbers for the log: "train_loss", "seconds".
        norm: The L2 norm of its arrays together; None if it was not measured.
    """

    num_examples: int
    nbytes: int
    metrics: Mapping[str, float]
    norm: float | None = None

    @classmethod
    def of(cls, update: ClientUpdate, norm: float | None = None) -> Contribution:
        """Return the figures of an update."""
        nbytes = sum(array.nbytes for array in update.arrays.values())
        return cls(update.num_examples, nbytes, update.metrics, norm)


@dataclass
class ReducedUpdates:
    """A round's updates, added up.

    Attributes:
        total: The weighted sum; None if no update was valid.
        contributions: The figures of each valid update, by node id.
        failures: The reason why each other client has none, by node id.
        compute_seconds: Time for which the round waited for computing clients.
        adding_seconds: Time in which the server added updates up.
        updates: The single updates by node id in client order, if they were asked for.
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
            reply: a client's reply.
            check_finite: Whether to refuse values that are not finite, or beyond
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

    A grid without this method hands every single update to the server, which adds them
    up in the same tree.
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
            content: The records that every client receives (a Flower `RecordDict`).
            node_ids: The cohort, in the order of the tree's positions.
            group_id: Flower's name for this group of messages: the round.
            reader: The reader that checks the replies, beside the clients.
            sizes: Number of images of each client, for dividing the work.
            timeout: The most seconds that a client may take.
        """


def tree_mean(
    updates: Sequence[ClientUpdate], weigh: Callable[[ClientUpdate], float]
) -> dict[str, Tensor]:
    """Average updates whose positions in the tree are those in the sequence.

    The order of the updates decides the last bits: sort them by client key.

    Args:
        updates: One or more updates, all with the same names and shapes.
        weigh: a function that returns an update's weight (`aggregation.weights`).

    Returns:
        The mean by parameter name.

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
    """Return an array as float32 or wider: half precision loses small addends."""
    if array.dtype == torch.float32:
        return array
    return array.to(torch.promote_types(array.dtype, torch.float32))


def _check_alike(arrays: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    names = arrays.keys() | others.keys()
    if len(names) == len(arrays) == len(others) and all(
        array.shape == others[name].shape for name, array in arrays.items()
    ):
        return
    shapes = [{n: tuple(a.shape) for n, a in side.items()} for side in (arrays, others)]
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
    # Minimum and maximum pass NaN and infinity on, in one pass and without a mask.
    return array.numel() == 0 or all(
        math.isfinite(end.item()) and abs(end.item()) <= largest
        for end in torch.aminmax(array)
    )
