"""A client's exposure counters: in Flower's state of the node, and in a file.

A resumed run starts with clients that remember nothing, so the counters are also in a
file of the client: below the run folder in a simulation; for a real client in its own
folder, or where the node config says (`exposures-file`). The file of a simulation holds
snapshots, so that a run resumed from its checkpoint finds the counters as they were
then.

A real client's file is the only record of what it has given away: Flower's state knows
one run, and two runs may train at once. So the file alone counts, one process at a time
goes from reading it to writing it, and it is on the disk before an update leaves.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import safetensors
from flwr.app import ArrayRecord, Context
from torch import Tensor

from clients.node import ClientNode
from clients.snapshots import may_be_resumed_from, read_snapshots, store_snapshot
from instahide_fl.deployment.ledger import exclusive
from instahide_fl.encoding.exposures import Exposures
from instahide_fl.errors import RoundError
from instahide_fl.files import explained
from instahide_fl.flower.arrays import from_record, to_record
from instahide_fl.tensor_files import load_tensors, save_tensors
from instahide_fl.wire.refusals import refused

FILE = "exposures-file"  # a key of a real client's node config
MAX_WAIT = 600.0  # seconds for another run's round to end
_RECORD = "exposures"  # a record in Context.state, which stays on the node
_DATA = "data"  # names the data set in the file's metadata

log = logging.getLogger("instahide_fl.client")


def exposures_locked(
    node: ClientNode, context: Context
) -> contextlib.AbstractContextManager[None]:
    """Keep other rounds of a real client waiting while this one reads and counts.

    Entering it may raise a RoundError: another run's round did not end in time.
    """
    path = _path(node, context)
    if path is None or not _is_durable(node):
        return contextlib.nullcontext()
    timeout = min(MAX_WAIT, node.config.train.timeout)
    return exclusive(path.with_suffix(".lock"), timeout)


def read_exposures(node: ClientNode, context: Context, round_number: int) -> Exposures:
    """Return the client's counters as they were before a round.

    Raises:
        RoundError: the file's counters are those of other images or settings.
    """
    fresh = Exposures.zeros(len(node.split), node.config.instahide)
    if _is_durable(node) and (durable := _path(node, context)):
        _exchange_ledger(durable, node.data_key)
        return _restored(node, fresh, durable, context)
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
    return _checked(node, path, Exposures(stored.counts, used), fresh)


def store_exposures(
    node: ClientNode, context: Context, round_number: int, exposures: Exposures
) -> None:
    """Store the counters after a round, and write them if a resumed run may need them.

    A real client's are on the disk then.

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
    if _is_durable(node):
        named = {f"{round_number}/{name}": array for name, array in tensors.items()}
        save_tensors(path, named, {_DATA: node.data_key})
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
        error = RoundError(
            f"{len(exposures.counts) - len(rows)} of its {len(exposures.counts)} "
            f"images have reached instahide.max-exposures = {encoding.max_exposures}, "
            f"and one encoding mixes {needed} that have not: end the run here, or set "
            f"train.min-updates so that it goes on without such clients"
        )
        raise refused(error, "exposures", ["instahide.max-exposures"])
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


def _is_durable(node: ClientNode) -> bool:
    """Whether the file alone counts: not in simulations, nor where keys repeat."""
    return not (node.simulated or node.seeded)


def _exchange_ledger(path: Path, data_key: str) -> None:
    """Put the counters of another data set aside, and those of this one back.

    Which data set it is follows from client.toml alone: no run's settings lead to new
    counters for the same images.
    """
    if not path.is_file():
        return
    with _damage_explained(path):
        _, metadata = load_tensors(path)
    stored_key = metadata.get(_DATA, data_key)
    if stored_key == data_key:
        return
    with explained(path):
        path.rename(_aside(path, stored_key))
        if _aside(path, data_key).is_file():
            _aside(path, data_key).rename(path)


def _aside(path: Path, data_key: str) -> Path:
    return path.with_name(f"{path.stem}-{data_key[:12]}{path.suffix}")


def _restored(
    node: ClientNode, fresh: Exposures, path: Path, context: Context
) -> Exposures:
    """Return a real client's counters over all runs, by its file."""
    snapshots = _read_counters(path)
    record = context.state.get(_RECORD)
    used = fresh.used
    # Fixed encodings last for one run, whose secret is in the same state.
    if isinstance(record, ArrayRecord) and "used" in record:
        used = from_record(record)["used"].clone()
    counts = snapshots[max(snapshots)].counts if snapshots else fresh.counts
    return _checked(node, path, Exposures(counts, used), fresh)


def _checked(
    node: ClientNode, path: Path, stored: Exposures, fresh: Exposures
) -> Exposures:
    """Return stored counters if they are of these images and settings.

    Raises:
        RoundError: they are not.
    """
    if (
        stored.counts.shape == fresh.counts.shape
        and stored.used.shape == fresh.used.shape
    ):
        return stored
    error = RoundError(
        f"{path} counts the exposures of {len(stored.counts)} images, client "
        f"{node.client} holds {len(fresh.counts)}: it is of another data set or "
        f"another instahide.refresh; move it away to count from 0"
    )
    raise refused(error, "exposure-ledger")


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
    with _damage_explained(path):
        return {
            number: Exposures(snapshot["counts"], snapshot["used"])
            for number, snapshot in read_snapshots(path).items()
        }


@contextlib.contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    """Turn what a damaged file of counters raises into a RoundError."""
    try:
        yield
    except KeyError as error:
        damage = RoundError(
            f"{path} counts no exposures (it lacks {error}): move the file away to "
            f"count from 0"
        )
    except (OSError, safetensors.SafetensorError) as error:
        damage = RoundError(
            f"cannot read what this client kept in {path}: {error}; move the file away "
            f"to start without it"
        )
    except RoundError as error:
        damage = error
    else:
        return
    raise refused(damage, "exposure-ledger") from None
