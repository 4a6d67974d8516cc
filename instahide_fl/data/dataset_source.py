"""A data set as its reader hands it to the cache: parts, decoded block by block.

The readers are `built_in_datasets`, `torchvision_files`, `image_folder` and
`hugging_face`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

ImageBlock: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
"""Some consecutive images of a part, u8[n,C,H,W]."""


@dataclass(frozen=True)
class DatasetPart:
    """One part of a data set, whose images are not decoded yet.

    Attributes:
        targets: i64[N], classes 0..K-1.
        blocks: a function that decodes the N images in order, a block at a time.
        client_ids: i64[N], the number of each image's owner; None if unknown.
    """

    targets: np.ndarray[Any, np.dtype[np.int64]]
    blocks: Callable[[], Iterator[ImageBlock]]
    client_ids: np.ndarray[Any, np.dtype[np.int64]] | None = None


@dataclass(frozen=True)
class DatasetContent:
    """A data set, not decoded yet.

    Attributes:
        parts: The parts `train` and `test`, or `all` if the seed has to divide them.
        class_names: Names of the K classes.
    """

    parts: dict[str, DatasetPart]
    class_names: list[str]


@dataclass(frozen=True)
class DatasetSource:
    """A data set that can be read, and what tells it from others.

    Attributes:
        identity: a text that differs whenever `read` may give other images or targets.
        read: a function that returns the content.
    """

    identity: str
    read: Callable[[], DatasetContent]


def file_listing(folder: Path, files: Iterable[Path] | None = None) -> str:
    """List files with size and time of change, so that changed ones are decoded anew.

    Args:
        folder: The folder that names are relative to.
        files: The files to list; all below the folder if None.
    """
    if files is None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
    rows = [
        (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
    ]
    return repr((str(folder.resolve()), rows))
