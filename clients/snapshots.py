"""What a client keeps from round to round in a file, for a run that is resumed.

A file holds at most two snapshots: the newest, and the newest that is not after the
last checkpoint, so that a run resumed from there finds things as they were then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from instahide_fl.errors import RoundError
from instahide_fl.files import atomic_file
from instahide_fl.tensor_files import load_tensors


def read_snapshots(path: Path) -> dict[int, dict[str, Tensor]]:
    """Return tensors by name, by the round after which they were kept.

    Raises:
        RoundError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        tensors, _ = load_tensors(path)
        found: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            number, _, name = key.partition("/")
            found.setdefault(int(number), {})[name] = tensor
        return found
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise RoundError(
            f"cannot read what this client kept in {path}: {error}; move the file away "
            f"to start without it"
        ) from None


def store_snapshot(
    path: Path,
    round_number: int,
    tensors: Mapping[str, Tensor],
    checkpoint_every: int,
    with_checkpoint: bool = True,
) -> None:
    """Write how things are after a round.

    Args:
        path: of the file.
        round_number: 1, 2, ...
        tensors: by name, on the CPU.
        checkpoint_every: rounds from one checkpoint of the server's to the next.
        with_checkpoint: keep the snapshot of the last checkpoint beside it.

    Raises:
        OutputError: the file cannot be written.
        RoundError: the file is damaged.
    """
    checkpoint = (round_number - 1) // checkpoint_every * checkpoint_every
    kept: dict[int, Mapping[str, Tensor]] = {}
    if with_checkpoint:
        known = read_snapshots(path)
        before = [number for number in known if number <= checkpoint]
        kept = {max(before): known[max(before)]} if before else {}
    kept[round_number] = tensors
    data = {
        f"{number}/{name}": tensor
        for number, snapshot in kept.items()
        for name, tensor in snapshot.items()
    }
    with atomic_file(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(data))
