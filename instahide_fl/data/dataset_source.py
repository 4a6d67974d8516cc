"""What a reader of data sets hands to the cache: parts that are decoded block by block.

Readers: `built_in`, `torchvision_files`, `image_folder` and `hugging_face`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

ImageBlock: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
"""Some consecutive images of a part: u8[n,C,H,W]."""


@dataclass(frozen=True)
class DatasetPart:
    """One part of a data set, whose images are not decoded yet.

    Attributes:
        targets: i64[N].
        blocks: decodes the images, in order; all blocks together have N.
        client_ids: i64[N], whose each image is; None where that is not known.
    """

    targets: np.ndarray[Any, np.dtype[np.int64]]
    blocks: Callable[[], Iterator[ImageBlock]]
    client_ids: np.ndarray[Any, np.dtype[np.int64]] | None = None


@dataclass(frozen=True)
class DatasetContent:
    """A data set, not decoded yet.

    Attributes:
        parts: `train` and `test`, or `all` where the seed has to divide it.
        class_names: K names.
    """

    parts: dict[str, DatasetPart]
    class_names: list[str]


@dataclass(frozen=True)
class DatasetSource:
    """Where a data set comes from.

    Attributes:
        identity: differs whenever `read` may give other images or targets.
        read: returns the content.
    """

    identity: str
    read: Callable[[], DatasetContent]


def file_listing(folder: Path, files: Iterable[Path] | None = None) -> str:
    """Describe files, so that a changed one is decoded anew.

    Args:
        folder: what their names are relative to.
        files: all below the folder if None.
    """
    if files is None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
    rows = [
        (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
    ]
    return repr((str(folder.resolve()), rows))
