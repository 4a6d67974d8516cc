"""Send messages, wait for the replies, add up updates."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from instahide_fl.aggregation.reduction import (
    Contribution,
    ReducedUpdates,
    ReducingGrid,
    TreeNode,
    TreeSum,
    UpdateSum,
)
from instahide_fl.aggregation.robust import RobustRule
from instahide_fl.errors import InstaHideError, ProtocolError
from instahide_fl.types import ClientUpdate
from server.records import UpdateReader, round_message


def collect(
    grid: Grid, messages: Sequence[Message], timeout: float
) -> Iterator[tuple[int, Message]]:
    """Send messages and yield replies as they come, until all are there or time is up.

    Yields:
        The id of the node that was asked, and its reply. (Flower makes up the reply of
        a node whose own was lost, in the server's name.)

    Flower's own `send_and_receive` polls every 0.1 s (3 s when deployed); here the
    pause grows with the time since the last reply, so that short rounds stay short.
    """
    start = latest = time.monotonic()
    pushed = list(grid.push_messages(messages))
    # Flower has no id for a message that it could not pass on.
    waiting = {
        one: message.metadata.dst_node_id
        for one, message in zip(pushed, messages, strict=False)
        if one
    }
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            # Once each, and from whoever was asked: any other reply is nobody's.
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is None:
                continue
            latest = time.monotonic()
            yield node, reply
        now = time.monotonic()
        if not waiting or now - start > timeout:
            return
        time.sleep(min(1.0, max(0.01, (now - latest) / 20)))


def reduce_updates(
    grid: Grid,
    content: RecordDict,
    node_ids: Sequence[int],
    group_id: str,
    reader: UpdateReader,
    sizes: Sequence[int],
    timeout: float,
    side_by_side: int,
    rule: RobustRule | None = None,
    keep_updates: bool = False,
) -> ReducedUpdates:
    """Send a round's content to a cohort and add up the updates that come back.

    A grid that can add up where updates are computed does so; the bits are the same.
    A robust rule and a transcript need every single update, so then they all come here.

    Args:
        grid: Flower's.
        content: what every client receives.
        node_ids: the cohort in client order, which is the order of the sum.
        group_id: the round.
        reader: checks the replies.
        sizes: images of each client.
        timeout: seconds to wait.
        side_by_side: clients that compute at the same time, to tell computing from
            waiting; unused where the grid knows.
        rule: combines the updates in place of the weighted sum; None for that.
        keep_updates: return the single updates too.
    """
    if rule is None and not keep_updates and isinstance(grid, ReducingGrid):
        return grid.send_and_reduce(content, node_ids, group_id, reader, sizes, timeout)
    received = _Received(reader, node_ids, timeout, rule, keep_updates)
    # A copy: the server moves its parameters while a late message may still be read.
    kept = copy.deepcopy(content)
    messages = [round_message(kept, node, group_id) for node in node_ids]
    for node, reply in collect(grid, messages, timeout):
        received.take(node, reply)
    return received.reduced(side_by_side)


class _Received:
    """A round's replies as they come in.

    Args:
        reader: checks them.
        node_ids: of the cohort, in client order.
        timeout: seconds, for the text about clients that stay silent.
        rule: combines the updates in place of the weighted sum; None for that.
        keep_updates: hold on to the single updates even without a rule.
    """

    def __init__(
        self,
        reader: UpdateReader,
        node_ids: Sequence[int],
        timeout: float,
        rule: RobustRule | None,
        keep_updates: bool,
    ) -> None:
        self._reader, self._rule = reader, rule
        self._keep = keep_updates or rule is not None
        self._position = {node: i for i, node in enumerate(node_ids)}
        silent = f"no answer within {timeout:g} s (train.timeout)"
        self._failures = dict.fromkeys(node_ids, silent)
        self._contributions: dict[int, Contribution] = {}
        self._updates: dict[int, ClientUpdate] = {}
        self._tree = TreeSum()
        self._seconds = 0.0

    def take(self, node: int, reply: Message) -> None:
        """Check a node's reply and add it up, or note why it cannot be."""
        start = time.perf_counter()
        try:
            if reply.has_content() and reply.metadata.src_node_id != node:
                raise ProtocolError("another node answered in its place")
            update = self._reader.read(reply)
            if self._keep:
                self._updates[node] = update
            if self._rule is None:
                leaf = UpdateSum.of(update, self._reader.weight(update))
                self._tree.put(TreeNode(0, self._position[node]), leaf)
            self._contributions[node] = Contribution.of(update)
            del self._failures[node]
        except InstaHideError as error:
            self._failures[node] = str(error)
        self._seconds += time.perf_counter() - start

    def reduced(self, side_by_side: int) -> ReducedUpdates:
        """Return the result, once no more replies come."""
        start = time.perf_counter()
        total = self._tree.total()
        updates = {n: self._updates[n] for n in self._position if n in self._updates}
        if self._rule is not None and updates:
            chosen = self._rule(list(updates.values()))
            total = UpdateSum(chosen, scale=1.0, weight=1.0, owned=True)
        self._seconds += time.perf_counter() - start
        took = [one.metrics.get("seconds", 0.0) for one in self._contributions.values()]
        computing = max([sum(took) / side_by_side, *took])
        return ReducedUpdates(
            total,
            self._contributions,
            self._failures,
            computing,
            self._seconds,
            updates,
        )
