"""Keeps what each stage of an attack arrives at, to resume and to inspect.

    FOLDER/network.safetensors             the embedding network
    FOLDER/client-3/embedding.safetensors  one file for each stage and client

A file holds the digest of all that its content depends on. One of another digest is
stale: it is computed again and replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
from torch import Tensor

from instahide_fl.errors import AttackError
from instahide_fl.tensor_files import load_tensors, save_tensors

KEY = "depends_on"


@dataclass(frozen=True)
class Stages:
    """Results of stages, in a folder or nowhere.

    Attributes:
        folder: None to keep nothing.
        depends_on: hex digest of settings and data so far.
    """

    folder: Path | None
    depends_on: str = ""

    def within(self, name: str, *parts: str | Tensor) -> Stages:
        """Return the stages of a part of the data, for instance of a client.

        Args:
            name: of the folder below this one.
            parts: what its stages depend on, beside what all do.
        """
        below = None if self.folder is None else self.folder / name
        return Stages(below, digest_of(self.depends_on, *parts))

    def result(
        self,
        name: str,
        compute: Callable[[], Mapping[str, Tensor]],
        *parts: str | Tensor,
    ) -> dict[str, Tensor]:
        """Return what a stage arrived at, computing it unless that was done before.

        Args:
            name: of the stage.
            compute: gives tensors by name.
            parts: what it depends on, beside what all do.

        Raises:
            AttackError: the file is there and damaged.
            OutputError: it cannot be written.
        """
        if self.folder is None:
            return dict(compute())
        path = self.folder / f"{name}.safetensors"
        key = digest_of(self.depends_on, name, *parts)
        kept = _load(path, key)
        if kept is None:
            kept = dict(compute())
            save_tensors(path, kept, {KEY: key})
        return kept


def _load(path: Path, key: str) -> dict[str, Tensor] | None:
    """Return what a file holds; None if there is none, or it is of something else."""
    if not path.is_file():
        return None
    try:
        tensors, about = load_tensors(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise AttackError(
            f"{path} is damaged ({error}): delete it to compute this stage again"
        ) from None
    return tensors if about.get(KEY) == key else None


def digest_of(*parts: str | Tensor) -> str:
    """Return the sha256 (hex) of texts and tensors, in order."""
    hasher = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            hasher.update(repr(part).encode())
        else:
            hasher.update(f"{part.dtype}{tuple(part.shape)}".encode())
            hasher.update(part.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()
