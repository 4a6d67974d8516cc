"""Files of named tensors (safetensors), never half written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from instahide_fl.files import atomic_file

# PyTorch is imported where it is used: a finished study is recognised without it.
if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors to a file, in one step.

    Args:
        path: The .safetensors file.
        tensors: The tensors by name; on any device, in any memory layout.
        metadata: The texts to store with them, by name.

    Raises:
        OutputError: the file cannot be written.
    """
    import safetensors.torch

    stored: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        on_cpu = tensor.detach().cpu().contiguous()
        address = on_cpu.untyped_storage().data_ptr()
        # The format refuses tensors that share memory, as the aggregate of krum does
        # with the update that was chosen.
        stored[name] = on_cpu.clone() if address in addresses else on_cpu
        addresses.add(address)
    with atomic_file(path) as temporary:
        data = safetensors.torch.save(stored, dict(metadata))
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file by name, on the CPU, and the metadata.

    Args:
        path: The .safetensors file.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: the file is truncated or of another kind.
    """
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata() or {})
