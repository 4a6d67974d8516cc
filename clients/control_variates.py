"""A client's control variate (SCAFFOLD): in Flower's state of the node, and in a file.

Only simulated clients have the file, below the run folder: a run resumed after its
process was killed goes on as if nothing had happened. Real clients start again at zero,
and the server's control variate with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flwr.app import ArrayRecord, Context
from torch import Tensor

from clients.node import ClientNode
from clients.snapshots import may_be_resumed_from, read_snapshots, store_snapshot
from instahide_fl.flower.arrays import from_record, to_record

FOLDER = "controls"  # a folder in the run folder of a simulation
_RECORD = "control"  # a record in Context.state, which stays on the node


def read_control_variate(
    node: ClientNode, context: Context, round_number: int
) -> dict[str, Tensor]:
    """Return the client's control variate by parameter name; empty for zero.

    Raises:
        RoundError: the client's file is damaged.
    """
    record = context.state.get(_RECORD)
    if isinstance(record, ArrayRecord):
        return from_record(record)
    path = _path(node)
    if path is None or not node.config.output.resume:
        return {}
    snapshots = read_snapshots(path)
    before = [number for number in snapshots if number < round_number]
    return snapshots[max(before)] if before else {}


def move_control_variate(
    node: ClientNode,
    context: Context,
    round_number: int,
    difference: Mapping[str, Tensor],
) -> None:
    """Add to the client's control variate; before its first round it is zero.

    Args:
        node: The client.
        context: Flower's context of the node.
        round_number: 1, 2, ...
        difference: The step of the control variate by parameter name.

    Raises:
        OutputError: the client's file cannot be written.
        RoundError: the client's file is damaged.
    """
    before = read_control_variate(node, context, round_number)
    moved = {name: array.cpu() for name, array in difference.items()}
    if before:
        moved = {name: before[name] + array for name, array in moved.items()}
    context.state[_RECORD] = to_record(moved)
    path = _path(node)
    if path and may_be_resumed_from(node.config, round_number):
        store_snapshot(path, round_number, moved, node.config.train.checkpoint_every)


def _path(node: ClientNode) -> Path | None:
    folder = node.config.output.folder
    if not (node.simulated and folder):
        return None
    return Path(folder) / FOLDER / f"client-{node.client}.safetensors"
