"""Snapshots of a client's tensors in a file, for a run that is resumed.

A file holds at most three snapshots: the newest, and for each of the server's last two
checkpoints the newest that is not after it, so that a run resumed from there finds the
tensors as they were then. Where every client takes part in every round, only rounds
with a checkpoint are stored: writing a file takes as long as training on ten small
images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from instahide_fl.config import Config
from instahide_fl.errors import RoundError
from instahide_fl.files import atomic_file
from instahide_fl.tensor_files import load_tensors


def read_snapshots(path: Path) -> dict[int, dict[str, Tensor]]:
    """Return a file's snapshots by round, each with its tensors by name.

    Args:
        path: The file, which may be missing.

    Raises:
        RoundError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        tensors, _ = load_tensors(path)
        snapshots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            number, _, name = key.partition("/")
            snapshots.setdefault(int(number), {})[name] = tensor
        return snapshots
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise RoundError(
            f"cannot read what this client kept in {path}: {error}; move the file away "
            f"to start without it"
        ) from None


def may_be_resumed_from(config: Config, round_number: int) -> bool:
    """Tell whether a resumed simulation can need what a client held after a round.

    It goes on after a checkpoint, with what each client held after the last round that
    it took part in. If all clients take part in all rounds, or the run ends, that is
    the round of the checkpoint itself.

    Args:
        config: The run's settings, with the number of clients.
        round_number: 1, 2, ...
    """
    train, num_clients = config.train, config.partition.num_clients
    has_cohorts = 0 < train.clients_per_round < num_clients
    may_lack_updates = 0 < train.min_updates < num_clients
    return (
        has_cohorts
        or may_lack_updates
        or round_number % train.checkpoint_every == 0
        or round_number == train.rounds
    )


def store_snapshot(
    path: Path,
    round_number: int,
    tensors: Mapping[str, Tensor],
    checkpoint_every: int,
    with_checkpoint: bool = True,
) -> None:
    """Write a snapshot after a round.

    Args:
        path: The file to write.
        round_number: 1, 2, ...
        tensors: The tensors by name, on the CPU.
        checkpoint_every: Number of rounds from one server checkpoint to the next.
        with_checkpoint: Whether the snapshots of the last checkpoints stay beside it.

    Raises:
        OutputError: the file cannot be written.
        RoundError: the file is damaged.
    """
    checkpoint = (round_number - 1) // checkpoint_every * checkpoint_every
    snapshots: dict[int, Mapping[str, Tensor]] = {}
    if with_checkpoint:
        stored = read_snapshots(path)
        for last in (checkpoint - checkpoint_every, checkpoint):
            if before := [number for number in stored if number <= last]:
                snapshots[max(before)] = stored[max(before)]
    snapshots[round_number] = tensors
    data = {
        f"{number}/{name}": tensor
        for number, snapshot in snapshots.items()
        for name, tensor in snapshot.items()
    }
    # Between checkpoints, what a power failure may take is not worth waiting for disks.
    synced = not with_checkpoint or round_number % checkpoint_every == 0
    with atomic_file(path, private=True, synced=synced) as temporary:
        temporary.write_bytes(safetensors.torch.save(data))
