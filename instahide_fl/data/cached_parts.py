"""One part of a decoded data set on disk: `.npy` files that processes map.

They are `PART-images.npy`, `PART-targets.npy`, `PART-hashes.npy` (of each image's
pixels), `PART-one-colour.npy` and, where the owner of each image is known,
`PART-clients.npy`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instahide_fl.data.duplicates import ImageHashes, hash_images, is_one_colour
from instahide_fl.data.npy_files import (
    NPY_READ_ERRORS,
    write_npy_block,
    write_npy_header,
)
from instahide_fl.data.report_counts import PartContents
from instahide_fl.data.sources.base import DatasetPart, ImageBlock, ImageBlocks
from instahide_fl.errors import DataError

CHUNK_BYTES = 2**24  # of pixels that are in memory at a time


@dataclass(frozen=True)
class CachedPart:
    """One part of a decoded data set.

    Attributes:
        images: u8[N,C,H,W], mapped from disk.
        targets: i64[N], classes 0..K-1.
        client_ids: i64[N], the number of each image's owner; None if unknown.
        contents: What the data report counts of these images.
    """

    images: Tensor
    targets: Tensor
    client_ids: Tensor | None
    contents: PartContents

    def sliced(self, rows: slice) -> CachedPart:
        """Keep some images, without a copy; owners without any lose their number.

        Args:
            rows: The rows to keep.
        """
        ids, contents = self.client_ids, self.contents
        if ids is not None:
            ids = torch.unique(ids[rows], return_inverse=True)[1]
        contents = PartContents(
            contents.targets[rows], contents.hashes[rows], contents.is_one_colour[rows]
        )
        return CachedPart(self.images[rows], self.targets[rows], ids, contents)


def select_rows(name: str, part: CachedPart, rows: np.ndarray[Any, Any]) -> DatasetPart:
    """Return some images of a part, copied block by block when they are written.

    Args:
        name: The name of the new part.
        part: The images to choose from.
        rows: The row numbers to take, in their new order.
    """
    images = part.images.numpy()
    step = max(1, CHUNK_BYTES // images[0].size)
    blocks = ImageBlocks(
        title=name,
        count=len(rows),
        channels=images.shape[1],
        blocks=lambda: (
            images[rows[start : start + step]] for start in range(0, len(rows), step)
        ),
    )
    ids = part.client_ids
    client_ids = None
    if ids is not None:  # owners without an image lose their number
        client_ids = np.unique(ids.numpy()[rows], return_inverse=True)[1]
    return DatasetPart(part.targets.numpy()[rows], blocks, client_ids)


def write_part(
    folder: Path,
    title: str,
    name: str,
    part: DatasetPart,
    blocks: Iterable[ImageBlock],
) -> None:
    """Write the files of a part.

    Args:
        folder: The folder to write in.
        title: The name of the part in messages.
        name: The name of the part in the names of files.
        part: Its targets and client ids.
        blocks: Its decoded images, in order.

    Raises:
        DataError: The numbers of images and targets differ, or an image is unreadable.
    """
    count = len(part.targets)
    num_written = _write_images(folder, name, count, blocks)
    if num_written != count:
        raise DataError(
            f"data.dataset: {title} has {num_written} images and {count} labels"
        )
    np.save(folder / f"{name}-targets.npy", part.targets)
    if part.client_ids is not None:
        np.save(folder / f"{name}-clients.npy", part.client_ids)


def _write_images(
    folder: Path, part: str, count: int, blocks: Iterable[ImageBlock]
) -> int:
    """Write images one block after another and return their number."""
    num_written = 0
    hashes: list[ImageHashes] = []
    one_colour: list[np.ndarray[Any, np.dtype[np.bool_]]] = []
    with (folder / f"{part}-images.npy").open("wb") as file:
        for block in blocks:
            if not num_written:
                write_npy_header(file, (count, *block.shape[1:]))
            write_npy_block(file, block)
            num_written += len(block)
            hashes.append(hash_images(block))
            one_colour.append(is_one_colour(block))
    if num_written:
        np.save(folder / f"{part}-hashes.npy", np.concatenate(hashes))
        np.save(folder / f"{part}-one-colour.npy", np.concatenate(one_colour))
    return num_written


def open_part(folder: Path, part: str) -> CachedPart:
    """Map the files of a part.

    Args:
        folder: The folder of the data set.
        part: The name of the part.

    Raises:
        DataError: The files are damaged.
    """
    clients = folder / f"{part}-clients.npy"
    try:
        contents = PartContents(
            targets=np.load(folder / f"{part}-targets.npy"),
            hashes=np.load(folder / f"{part}-hashes.npy"),
            is_one_colour=np.load(folder / f"{part}-one-colour.npy"),
        )
        return CachedPart(
            images=torch.from_numpy(map_images(folder, part)),
            targets=torch.from_numpy(contents.targets),
            client_ids=torch.from_numpy(np.load(clients)) if clients.exists() else None,
            contents=contents,
        )
    except NPY_READ_ERRORS as error:
        raise damaged(folder, error) from None


def map_images(folder: Path, part: str) -> ImageBlock:
    """Map the images of a part, u8[N,C,H,W].

    Args:
        folder: The folder of the data set.
        part: The name of the part.
    """
    # Mode "c" (copy on write) because torch warns about read-only memory.
    images: ImageBlock = np.load(folder / f"{part}-images.npy", mmap_mode="c")
    return images


def damaged(folder: Path, error: Exception) -> DataError:
    """Return the error about a data set whose cached files are damaged.

    Args:
        folder: The folder of the data set.
        error: What reading raised.
    """
    return DataError(
        f"the cached data set {folder} is damaged ({error}): delete that folder"
    )
