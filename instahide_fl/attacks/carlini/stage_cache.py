"""Keeps what each stage of an attack arrives at, to resume and to inspect.

    FOLDER/client-3/public.safetensors    the public images found in the encodings
    FOLDER/client-3/clusters.safetensors  the clusters of label entries
    FOLDER/client-3/links.safetensors     the image of each label entry, at first
    FOLDER/client-3/refined.safetensors   images and links after refinement

A file holds the digest of all that its content depends on. A file with another digest
is stale: its stage is computed again and the file replaced.
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
class StageCache:
    """The results of stages, kept in a folder or not at all.

    Attributes:
        folder: The folder of the files; None to keep nothing.
        depends_on: The digest (hex) of the settings and data that all stages depend on.
    """

    folder: Path | None
    depends_on: str = ""

    def subfolder(self, name: str, *dependencies: str | Tensor) -> StageCache:
        """Return the cache of a part of the data, for instance of a client.

        Args:
            name: The name of the folder below this one.
            dependencies: What its stages depend on besides.
        """
        folder = None if self.folder is None else self.folder / name
        return StageCache(folder, digest_of(self.depends_on, *dependencies))

    def get_or_compute(
        self,
        name: str,
        compute: Callable[[], Mapping[str, Tensor]],
        *dependencies: str | Tensor,
    ) -> dict[str, Tensor]:
        """Return what a stage arrived at, computing it unless that was done before.

        Args:
            name: The name of the stage.
            compute: The function that returns the stage's tensors by name.
            dependencies: What the stage depends on besides.

        Raises:
            AttackError: The file is there and damaged.
            OutputError: The file cannot be written.
        """
        if self.folder is None:
            return dict(compute())
        path = self.folder / f"{name}.safetensors"
        key = digest_of(self.depends_on, name, *dependencies)
        tensors = _load(path, key)
        if tensors is None:
            tensors = dict(compute())
            save_tensors(path, tensors, {KEY: key})
        return tensors


def _load(path: Path, key: str) -> dict[str, Tensor] | None:
    """Return what a file holds; None if there is none, or if it is stale."""
    if not path.is_file():
        return None
    try:
        tensors, metadata = load_tensors(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise AttackError(
            f"{path} is damaged ({error}): delete it to compute this stage again"
        ) from None
    return tensors if metadata.get(KEY) == key else None


def digest_of(*parts: str | Tensor) -> str:
    """Return the sha256 (hex) of texts and tensors, in order."""
    hasher = hashlib.sha256()
    for part in parts:
        # Quotes, or dtype and shape, mark where one part ends and the next begins.
        if isinstance(part, str):
            hasher.update(repr(part).encode())
        else:
            hasher.update(f"{part.dtype}{tuple(part.shape)}".encode())
            hasher.update(part.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()
