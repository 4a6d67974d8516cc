"""Send messages, wait for the replies, add up updates."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from instahide_fl.aggregation.reduction import (
    Contribution,
    Node,
    Reduced,
    ReducingGrid,
    TreeSum,
    UpdateSum,
)
from instahide_fl.aggregation.robust import RobustRule
from instahide_fl.errors import InstaHideError
from instahide_fl.types import ClientUpdate
from server.records import UpdateReader, round_message


def collect(
    grid: Grid, messages: Sequence[Message], timeout: float
) -> Iterator[Message]:
    """Send messages and yield replies as they come, until all are there or time is up.

    Flower's own `send_and_receive` polls every 0.1 s (3 s when deployed); here the
    pause grows with the time since the last reply, so that short rounds stay short.
    """
    start = latest = time.monotonic()
    waiting = set(grid.push_messages(messages))
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            latest = time.monotonic()
            yield reply
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
) -> Reduced:
    """Send a round's content to a cohort and add up the updates that come back.

    A grid that can add up where updates are computed does so; the bits are the same.
    A robust rule needs to see every single update, so then they all come here.

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
    """
    if rule is None and isinstance(grid, ReducingGrid):
        return grid.send_and_reduce(content, node_ids, group_id, reader, sizes, timeout)
    position = {node: i for i, node in enumerate(node_ids)}
    silent = f"no answer within {timeout:g} s (train.timeout)"
    failures = dict.fromkeys(node_ids, silent)
    contributions: dict[int, Contribution] = {}
    tree, adding = TreeSum(), 0.0
    single: dict[int, ClientUpdate] = {}
    # A copy: the server moves its parameters while a late message may still be read.
    kept = copy.deepcopy(content)
    messages = [round_message(kept, node, group_id) for node in node_ids]
    for reply in collect(grid, messages, timeout):
        start = time.perf_counter()
        node = reply.metadata.src_node_id
        try:
            update = reader.read(reply)
            if rule is not None:
                single[position[node]] = update
            else:
                leaf = UpdateSum.of(update, reader.weight(update))
                tree.put(Node(0, position[node]), leaf)
            contributions[node] = Contribution.of(update)
            del failures[node]
        except InstaHideError as error:
            failures[node] = str(error)
        adding += time.perf_counter() - start
    start = time.perf_counter()
    total = tree.total()
    if rule is not None and single:
        chosen = rule([single[place] for place in sorted(single)])
        total = UpdateSum(chosen, scale=1.0, weight=1.0, owned=True)
    adding += time.perf_counter() - start
    seconds = [one.metrics.get("seconds", 0.0) for one in contributions.values()]
    computing = max([sum(seconds) / side_by_side, *seconds])
    return Reduced(total, contributions, failures, computing, adding)
