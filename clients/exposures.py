"""A client's exposure counters: in Flower's state of the node, and in a file.

A resumed run starts with clients that remember nothing, so the counters are also in a
file of the client: below the run folder in a simulation; for a real client in its own
folder, or where the node config says (`exposures-file`). The file holds snapshots, so
that a run resumed from its checkpoint finds the counters as they were then.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import ArrayRecord, Context
from torch import Tensor

from clients.node import ClientNode
from clients.snapshots import may_be_resumed_from, read_snapshots, store_snapshot
from instahide_fl.encoding.exposures import Exposures
from instahide_fl.errors import RoundError
from instahide_fl.flower.arrays import from_record, to_record

FILE = "exposures-file"  # a key of a real client's node config
_RECORD = "exposures"  # a record in Context.state, which stays on the node

log = logging.getLogger("instahide_fl.client")


def read_exposures(node: ClientNode, context: Context, round_number: int) -> Exposures:
    """Return the client's counters as they were before a round.

    Raises:
        RoundError: the file's counters are those of other images or settings.
    """
    fresh = Exposures.zeros(len(node.split), node.config.instahide)
    record = context.state.get(_RECORD)
    if isinstance(record, ArrayRecord):
        tensors = from_record(record)
        # A copy: counters are written to, and the state must stay if the round fails.
        return Exposures(tensors["counts"].clone(), tensors["used"].clone())
    path = _path(node, context)
    resumed = not node.simulated or node.config.output.resume
    if path is None or not resumed or not path.is_file():
        return fresh
    snapshots = _read_counters(path)
    before = [number for number in snapshots if number < round_number]
    # Keys that do not repeat were really made after the checkpoint: all of them count.
    usable = before if node.seeded else list(snapshots)
    if not usable:
        return fresh
    stored = snapshots[max(usable)]
    # Fixed encodings by other keys than before are other encodings.
    used = stored.used if node.seeded else fresh.used
    if stored.counts.shape != fresh.counts.shape or used.shape != fresh.used.shape:
        raise RoundError(
            f"{path} counts the exposures of {len(stored.counts)} images, client "
            f"{node.client} holds {len(fresh.counts)}: it is of another data set or "
            f"another instahide.refresh; move it away to count from 0"
        )
    return Exposures(stored.counts, used)


def store_exposures(
    node: ClientNode, context: Context, round_number: int, exposures: Exposures
) -> None:
    """Store the counters after a round, and write them if a resumed run may need them.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {"counts": exposures.counts, "used": exposures.used}
    context.state[_RECORD] = to_record(tensors)
    path = _path(node, context)
    # Without a seed the encodings after a checkpoint are others, and count as well.
    skippable = node.simulated and node.seeded
    if path is None or (
        skippable and not may_be_resumed_from(node.config, round_number)
    ):
        return
    every = node.config.train.checkpoint_every
    store_snapshot(path, round_number, tensors, every, with_checkpoint=node.seeded)


def open_rows(node: ClientNode, exposures: Exposures) -> Tensor:
    """Return the images that may take part in a round, i64[n].

    Raises:
        RoundError: too few such images are left for one encoding.
    """
    encoding = node.config.instahide
    stops = encoding.exposure_action == "stop"
    rows = exposures.below(encoding.max_exposures if stops else 0)
    needed = 1 if encoding.method == "none" else encoding.private_count
    if len(rows) < needed:
        raise RoundError(
            f"{len(exposures.counts) - len(rows)} of its {len(exposures.counts)} "
            f"images have reached instahide.max-exposures = {encoding.max_exposures}, "
            f"and one encoding mixes {needed} that have not: end the run here, or set "
            f"train.min-updates so that it goes on without such clients"
        )
    return rows


def warn_of_exposures(
    node: ClientNode, round_number: int, before: int, exposures: Exposures
) -> None:
    """Warn in the client's log if images passed the limit in this round.

    Args:
        node: The client.
        round_number: 1, 2, ...
        before: Number of images beyond the limit before the round.
        exposures: The counters after the round.
    """
    limit = node.config.instahide.max_exposures
    beyond = exposures.beyond(limit)
    if beyond > before:
        log.warning(
            "round %d: %d images of client %s have been in more than %d encodings "
            "(instahide.max-exposures)",
            round_number,
            beyond,
            node.client,
            limit,
        )


def _path(node: ClientNode, context: Context) -> Path | None:
    if node.simulated:
        folder = node.config.output.folder
        name = f"client-{node.client}.safetensors"
        return Path(folder) / "exposures" / name if folder else None
    if node.state:
        return node.state / "exposures.safetensors"
    configured = context.node_config.get(FILE)
    return Path(str(configured)).expanduser() if configured else None


def _read_counters(path: Path) -> dict[int, Exposures]:
    """Return the counters in a file by the round after which they were stored.

    Raises:
        RoundError: the file is damaged.
    """
    try:
        return {
            number: Exposures(snapshot["counts"], snapshot["used"])
            for number, snapshot in read_snapshots(path).items()
        }
    except KeyError as error:
        raise RoundError(
            f"{path} counts no exposures (it lacks {error}): move the file away to "
            f"count from 0"
        ) from None
