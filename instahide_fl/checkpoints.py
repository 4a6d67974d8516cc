"""Which checkpoint of a run is whole: the newest, or the one before."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors

from instahide_fl.errors import OutputError
from instahide_fl.files import explained
from instahide_fl.tensor_files import CHECKSUM, load_tensors

if TYPE_CHECKING:
    from torch import Tensor

ROUND = "round"  # the last completed one, in a checkpoint's metadata
# How a damaged checkpoint shows.
DAMAGE = (OSError, safetensors.SafetensorError, KeyError, ValueError)

log = logging.getLogger("instahide_fl.run")


def newest_checkpoint(current: Path, previous: Path) -> tuple[int, dict[str, Tensor]]:
    """Return the round and the tensors of the newest checkpoint that is whole.

    The one before takes the place of a damaged one.

    Args:
        current: The newest checkpoint; may be absent.
        previous: The one before; may be absent.

    Returns:
        The last completed round and the tensors by name; 0 and nothing if both are
        absent.

    Raises:
        OutputError: there are checkpoints, and none can be read.
    """
    paths = [path for path in (current, previous) if path.is_file()]
    failures: list[str] = []
    for path in paths:
        try:
            last_round, tensors = _read_checkpoint(path)
        except DAMAGE as error:
            failures.append(f"cannot read the checkpoint {path}: {error}")
            continue
        if path != current:
            # Else the next checkpoint would be kept beside the damaged one.
            with explained(current):
                path.replace(current)
        for failure in failures:
            log.warning("%s: continued from that of round %d", failure, last_round)
        return last_round, tensors
    if failures:
        raise OutputError("; ".join(failures))
    return 0, {}


def _read_checkpoint(path: Path) -> tuple[int, dict[str, Tensor]]:
    """Return a checkpoint's round and tensors.

    Raises:
        OSError, SafetensorError, KeyError, ValueError: it is damaged.
    """
    tensors, metadata = load_tensors(path)
    # Those of earlier versions have no checksum, and nothing but the round.
    if CHECKSUM not in metadata and metadata.keys() != {ROUND}:
        raise ValueError("it has no checksum")
    return int(metadata[ROUND]), tensors
