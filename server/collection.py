"""Collection of a round's replies: send messages, wait, add up updates."""

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
from instahide_fl.defenses.transforms import l2_norm
from instahide_fl.errors import InstaHideError, ProtocolError
from instahide_fl.types import ClientUpdate
from server.records import UpdateReader, round_message


def collect(
    grid: Grid, messages: Sequence[Message], timeout: float
) -> Iterator[tuple[int, Message]]:
    """Send messages and yield replies as they come, until all are there or time is up.

    Flower's own `send_and_receive` polls every 0.1 s (3 s when deployed); here the
    pause grows with the time since the last reply, so that short rounds stay short.

    Args:
        grid: Flower's grid.
        messages: The messages, one to a node.
        timeout: Seconds to wait.

    Yields:
        The id of the node that was asked, and its reply. (Flower makes up the reply of
        a node whose own was lost, in the server's name.)
    """
    start = latest = time.monotonic()
    message_ids = list(grid.push_messages(messages))
    # Flower has no id for a message that it could not pass on.
    waiting = {
        message_id: message.metadata.dst_node_id
        for message_id, message in zip(message_ids, messages, strict=False)
        if message_id
    }
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            # One reply to each message: any other answers no question and is dropped.
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
        grid: Flower's grid.
        content: The records that every client receives.
        node_ids: The cohort in client order, which is the order of the sum.
        group_id: Flower's name for this group of messages: the round.
        reader: The reader that checks the replies.
        sizes: Number of images of each client.
        timeout: Seconds to wait.
        side_by_side: Number of clients that compute at the same time, to tell computing
            from waiting; unused if the grid knows it.
        rule: a robust rule in place of the weighted sum; None for the sum.
        keep_updates: Whether to return the single updates too.
    """
    if rule is None and not keep_updates and isinstance(grid, ReducingGrid):
        return grid.send_and_reduce(
            content=content,
            node_ids=node_ids,
            group_id=group_id,
            reader=reader,
            sizes=sizes,
            timeout=timeout,
        )
    replies = _RoundReplies(reader, node_ids, timeout, rule, keep_updates)
    # A copy: the server moves its parameters while a late message may still be read.
    snapshot = copy.deepcopy(content)
    messages = [round_message(snapshot, node, group_id) for node in node_ids]
    for node, reply in collect(grid, messages, timeout):
        replies.add(node, reply)
    return replies.reduced(side_by_side)


class _RoundReplies:
    """A round's replies, added up as they come.

    They come in any order; the tree adds them in client order (`TreeSum`).

    Args:
        reader: The reader that checks the replies.
        node_ids: The cohort in client order.
        timeout: Seconds to wait, for the reason why a silent client failed.
        rule: a robust rule in place of the weighted sum; None for the sum.
        keep_updates: Whether to keep the single updates even without a rule.
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

    def add(self, node: int, reply: Message) -> None:
        """Check a node's reply and add its update, or note why it cannot be added."""
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
            norm = l2_norm(update.arrays) if self._reader.measures_norms else None
            self._contributions[node] = Contribution.of(update, norm)
            del self._failures[node]
        except InstaHideError as error:
            self._failures[node] = str(error)
        self._seconds += time.perf_counter() - start

    def reduced(self, side_by_side: int) -> ReducedUpdates:
        """Return the result, once no more replies come."""
        start = time.perf_counter()
        total = self._tree.total()
        # In client order, whatever the order of arrival: rules break ties by it.
        updates = {n: self._updates[n] for n in self._position if n in self._updates}
        if self._rule is not None and updates:
            combined = self._rule(list(updates.values()))
            total = UpdateSum(combined, scale=1.0, weight=1.0, owned=True)
        self._seconds += time.perf_counter() - start
        client_seconds = [
            contribution.metrics.get("seconds", 0.0)
            for contribution in self._contributions.values()
        ]
        # Not less than all clients' time, spread over those that compute at once, and
        # not less than the slowest client's.
        compute_seconds = max([sum(client_seconds) / side_by_side, *client_seconds])
        return ReducedUpdates(
            total=total,
            contributions=self._contributions,
            failures=self._failures,
            compute_seconds=compute_seconds,
            adding_seconds=self._seconds,
            updates=updates,
        )
