"""Files of named tensors (safetensors), written so that none is ever half there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from instahide_fl.files import atomic_file

# PyTorch is imported where it is used: a study that is finished is told without it.
if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Replace a file in one step.

    Args:
        path: of the .safetensors file.
        tensors: by name; on any device, in any layout.
        metadata: texts to keep with them.

    Raises:
        OutputError: it cannot be written.
    """
    import safetensors.torch

    stored: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, array in tensors.items():
        kept = array.detach().cpu().contiguous()
        memory = kept.untyped_storage().data_ptr()
        # The format refuses tensors that share memory: krum's choice is an update.
        stored[name] = kept.clone() if memory in taken else kept
        taken.add(memory)
    with atomic_file(path) as temporary:
        data = safetensors.torch.save(stored, dict(metadata))
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by name, on the CPU, and the metadata.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it is truncated or of another kind.
    """
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata() or {})
