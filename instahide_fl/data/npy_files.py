"""`.npy` files of images that are written block by block."""

from __future__ import annotations

import tokenize
from typing import IO

import numpy as np

from instahide_fl.data.dataset_source import ImageBlock

# What numpy raises for a damaged file: it reads a header as Python's own syntax.
NPY_READ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    SyntaxError,
    tokenize.TokenError,
)


def write_npy_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """Write what comes before the pixels, u8 in C order.

    Args:
        file: at its start.
        shape: of all images together.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def write_npy_block(file: IO[bytes], block: ImageBlock) -> memoryview:
    """Write the next images, u8[n,...], and return their bytes.

    Not through a memory map: a disk that fills up would kill the process there, here it
    is an error.
    """
    pixels = np.ascontiguousarray(block).data
    file.write(pixels)
    return pixels
