"""Files of named tensors (safetensors), never half written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from instahide_fl.files import atomic_file

# PyTorch is imported where it is used: a finished study is recognised without it.
if TYPE_CHECKING:
    from torch import Tensor


CHECKSUM = "sha256"  # the metadata that holds the digest of all the rest


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    private: bool = False,
) -> None:
    """Write tensors to a file, in one step.

    Args:
        path: The .safetensors file.
        tensors: The tensors by name; on any device, in any memory layout.
        metadata: The texts to store with them, by name.
        private: Whether only its owner may read it.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_file(path, private=private) as temporary:
        _write(temporary, tensors, metadata)


def save_checked_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    previous: Path,
) -> None:
    """Write tensors with a checksum to a file, in one step, and keep the one before.

    Args:
        path: The .safetensors file.
        tensors: The tensors by name; on any device, in any memory layout.
        metadata: The texts to store with them, by name.
        previous: The name that the file of before gets.

    Raises:
        OutputError: the file cannot be written.
    """
    on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    checksum = _digest(on_cpu, metadata)
    with atomic_file(path, previous=previous) as temporary:
        _write(temporary, on_cpu, {**metadata, CHECKSUM: checksum})


def _write(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
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
    path.write_bytes(safetensors.torch.save(stored, dict(metadata)))


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the sha256 of names, types, shapes and values, in hex."""
    import torch

    hasher = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        described = [name, str(tensor.dtype), list(tensor.shape)]
        hasher.update(json.dumps(described).encode())
        # NumPy does not know all types of PyTorch, but bytes.
        values = tensor.contiguous().reshape(-1).view(torch.uint8)
        hasher.update(values.numpy().data)
    return hasher.hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file by name, on the CPU, and the metadata.

    Args:
        path: The .safetensors file.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: the file is truncated or of another kind, or does not have the
            checksum that it names.
    """
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    if CHECKSUM in metadata:
        described = {name: text for name, text in metadata.items() if name != CHECKSUM}
        if _digest(tensors, described) != metadata[CHECKSUM]:
            raise safetensors.SafetensorError("its checksum is of another content")
    return tensors, metadata
