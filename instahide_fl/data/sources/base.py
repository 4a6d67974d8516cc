"""A data set as its reader hands it to the cache: parts whose pictures are stored.

The readers are the other modules of this package; `picture_decoding` decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from instahide_fl.data.data_report import SourceFindings

ImageBlock: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
"""Some consecutive images of a part, u8[n,C,H,W]."""

StoredPicture: TypeAlias = "Path | bytes | np.ndarray[Any, Any]"
"""A picture file, the bytes of one, or pixels of any dtype, [H,W] or [H,W,3]."""

BLOCK_IMAGES = 128  # images that are in memory at a time


@dataclass(frozen=True)
class StoredPictures:
    """The pictures of a part that have to be decoded.

    Attributes:
        title: The name of the part, for messages.
        count: The number of pictures, N.
        fetch: A function of start and stop that returns the stored pictures start,
            ..., stop-1.
        name: A function that names a picture by its number, for messages.
    """

    title: str
    count: int
    fetch: Callable[[int, int], Sequence[StoredPicture]]
    name: Callable[[int], str]


@dataclass(frozen=True)
class ImageBlocks:
    """The images of a part whose pixels are there: of a package, or drawn.

    Attributes:
        title: The name of the part, for messages.
        count: The number of images, N.
        channels: 1 (grey) or 3 (colour).
        blocks: A function that returns the N images in order, a block at a time.
    """

    title: str
    count: int
    channels: int
    blocks: Callable[[], Iterator[ImageBlock]]

    @classmethod
    def of(cls, title: str, images: ImageBlock) -> ImageBlocks:
        """Cut images in memory, u8[N,C,H,W], into blocks."""

        def blocks() -> Iterator[ImageBlock]:
            for start in range(0, len(images), BLOCK_IMAGES):
                yield images[start : start + BLOCK_IMAGES]

        return cls(title, len(images), images.shape[1], blocks)


@dataclass(frozen=True)
class DatasetPart:
    """One part of a data set, whose pictures are not decoded yet.

    Attributes:
        targets: i64[N], classes 0..K-1.
        pictures: The N pictures.
        client_ids: i64[N], the number of each image's owner; None if unknown.
    """

    targets: np.ndarray[Any, np.dtype[np.int64]]
    pictures: StoredPictures | ImageBlocks
    client_ids: np.ndarray[Any, np.dtype[np.int64]] | None = None


@dataclass(frozen=True)
class DatasetContent:
    """A data set, not decoded yet.

    Attributes:
        parts: The parts `train` and `test`, or `all` if the seed has to divide them.
        class_names: Names of the K classes.
        findings: What the reader took and what it left out.
    """

    parts: dict[str, DatasetPart]
    class_names: list[str]
    findings: SourceFindings = field(default_factory=SourceFindings)


@dataclass(frozen=True)
class DatasetSource:
    """A data set that can be read, and what tells it from others.

    Attributes:
        identity: A text that differs whenever `read` may give other images or targets,
            whatever the settings that `read` does not use (image size, channels, value
            range, duplicates).
        read: A function that returns the content.
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
