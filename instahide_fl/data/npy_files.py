"""`.npy` files of images that are written block by block."""

from __future__ import annotations

import tokenize
from typing import IO

import numpy as np

from instahide_fl.data.sources.base import ImageBlock

# What numpy raises for a damaged file, whose header it parses as Python's own syntax.
NPY_READ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    SyntaxError,
    tokenize.TokenError,
)


def write_npy_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """Write the header of a `.npy` file of uint8 in C order.

    Args:
        file: The file, at its start.
        shape: The shape of all images together.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def write_npy_block(file: IO[bytes], block: ImageBlock) -> memoryview:
    """Append images, u8[n,...], and return their bytes.

    A memory map would do too, but there a full disk kills the process; here it is an
    error.
    """
    pixels = np.ascontiguousarray(block).data
    file.write(pixels)
    return pixels
