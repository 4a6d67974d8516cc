"""The encoding of a whole batch in one pass over bytes, compiled by numba.

The equation and the order of operations are those of `mixing.mix_and_flip`;
normalisation is folded into one factor and one constant for each source and channel.
Sources stay uint8 where they are (rows of a shared array or of a memory map): no image
is gathered, converted or padded before it is added up.

The sign mask stays packed, one random bit for each value, eight to a byte: for a
3x32x32 image 384 bytes instead of 12 KB of floats. A table turns a byte into its eight
signs, so the loop over pixels shifts no bits.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from instahide_fl.types import ChannelStatistics

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.int64]

MIN_ROWS_PER_THREAD = 128  # fewer are encoded sooner than handed to another thread


def fused_mix(
    private: Bytes,
    private_rows: Indices,
    private_statistics: ChannelStatistics,
    public: Bytes,
    public_rows: Indices,
    public_statistics: ChannelStatistics,
    coefficients: Floats,
    sign_bits: Bytes | None,
    crop: tuple[Indices, NDArray[np.bool_], int] | None,
) -> Floats:
    """Encode a batch: signs * sum_j coefficients[:, j] * normalised source j.

    The result does not depend on the number of threads (`torch.get_num_threads`).

    Args:
        private: Private images u8[M,C,H,W], C-contiguous.
        private_rows: Rows of the private images, i64[B,p].
        private_statistics: Normalisation constants of the private images.
        public: Public images u8[P,C,H,W], C-contiguous; may be empty.
        public_rows: Rows of the public images, i64[B,k-p].
        public_statistics: Normalisation constants of the public images.
        coefficients: Mixing coefficients f32[B,k], private ones first.
        sign_bits: Packed signs u8[B,ceil(C*H*W/8)], most significant bit first, 1 for
            +1; None leaves signs alone.
        crop: Offsets i64[B*p,2], flips bool[B*p] and padding of the private sources in
            row order (`data.augment`); None for no augmentation.

    Returns:
        f32[B,C,H,W].
    """
    count = len(coefficients)
    out = np.empty((count, *private.shape[1:]), np.float32)
    inputs = (
        private,
        private_rows,
        *_scale_and_shift(private_statistics),
        public,
        public_rows,
        *_scale_and_shift(public_statistics),
        coefficients,
        _NO_BITS if sign_bits is None else sign_bits,
        sign_bits is not None,
        _SIGNS_OF_BYTE,
        *(crop or _NO_CROP),
    )

    def encode(start: int, stop: int) -> None:
        _kernel()(start, stop, out, *inputs)

    threads = min(torch.get_num_threads(), count // MIN_ROWS_PER_THREAD)
    if threads < 2:
        encode(0, count)
        return out
    # Each thread has rows of its own, so no sum depends on their number.
    bounds = np.linspace(0, count, threads + 1).astype(int).tolist()
    list(_threads(threads).map(encode, bounds[:-1], bounds[1:]))
    return out


def prepare() -> None:
    """Compile the loop, or load it from numba's cache, so that later calls are fast."""
    _kernel()


# The compiled loop takes arrays only: a padding of -1 means that nothing is cropped.
_NO_CROP = (np.empty((0, 2), np.int64), np.empty(0, np.bool_), -1)
_NO_BITS = np.empty((0, 0), np.uint8)
# f32[256,8] of -1 and +1: row b holds the eight signs that byte b stands for, its most
# significant bit first, as `types.unpack_signs` reads it.
_SIGNS_OF_BYTE = np.unpackbits(
    np.arange(256, dtype=np.uint8)[:, None], axis=1
) * np.float32(2) - np.float32(1)


@lru_cache(maxsize=64)
def _scale_and_shift(statistics: ChannelStatistics) -> tuple[Floats, Floats]:
    """Return scale and shift f32[C]: (x / 255 - mean) / std = x * scale + shift."""
    mean, std = np.array(statistics.mean), np.array(statistics.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="encode")


@cache
def _kernel() -> Callable[..., None]:
    # Imported here: numba takes a good part of a second, which only those who encode
    # on the CPU should pay.
    import numba
    from numba import boolean, float32, int64, uint8, void

    scale = float32[::1]
    batch = (int64, int64, float32[:, :, :, ::1])
    source = (uint8[:, :, :, ::1], int64[:, :], scale, scale)
    mixing = (float32[:, ::1], uint8[:, ::1], boolean, float32[:, ::1])
    crop = (int64[:, ::1], boolean[::1], int64)
    signature = void(*batch, *source, *source, *mixing, *crop)
    # Threads of our own without the GIL, not numba's: those do not mix with many
    # processes, and take several times as long to compile.
    compiled: Callable[..., None] = numba.njit(
        signature, nogil=True, cache=True, boundscheck=False
    )(_encode_rows)
    return compiled


def _encode_rows(
    start: int,
    stop: int,
    out: Floats,
    private: Bytes,
    private_rows: Indices,
    private_scale: Floats,
    private_shift: Floats,
    public: Bytes,
    public_rows: Indices,
    public_scale: Floats,
    public_shift: Floats,
    coefficients: Floats,
    sign_bits: Bytes,
    flip_signs: bool,
    signs_of_byte: Floats,
    offsets: Indices,
    flips: NDArray[np.bool_],
    padding: int,
) -> None:
    """Encode the rows from `start` to `stop` into `out`."""
    # Longer than other functions here: numba compiles it as one nest of loops.
    channels, height, width = out.shape[1], out.shape[2], out.shape[3]
    pixels = height * width
    num_private = private_rows.shape[1]
    for row in range(start, stop):
        for channel in range(channels):
            plane = out[row, channel].reshape(pixels)  # a view: [H,W] -> [H*W]
            # The shifts of all sources are one constant, added before the pixels.
            constant = np.float32(0)
            for j in range(coefficients.shape[1]):
                shift = private_shift if j < num_private else public_shift
                constant += coefficients[row, j] * shift[channel]
            for d in range(pixels):
                plane[d] = constant
            for j in range(num_private):
                weight = coefficients[row, j] * private_scale[channel]
                image = private[private_rows[row, j], channel]
                if padding < 0:
                    flat = image.reshape(pixels)
                    for d in range(pixels):
                        plane[d] += weight * np.float32(flat[d])
                    continue
                # The crop's first row and column in the image. Outside of the image the
                # padding is 0: there is nothing to add.
                top = offsets[row * num_private + j, 0] - padding
                first = offsets[row * num_private + j, 1] - padding
                flip = flips[row * num_private + j]
                for y in range(max(0, -top), min(height, height - top)):
                    source = image[y + top]
                    for x in range(max(0, first), min(width, width + first)):
                        target = x - first
                        if flip:
                            target = width - 1 - target
                        plane[y * width + target] += weight * np.float32(source[x])
            for j in range(public_rows.shape[1]):
                weight = coefficients[row, num_private + j] * public_scale[channel]
                flat = public[public_rows[row, j], channel].reshape(pixels)
                for d in range(pixels):
                    plane[d] += weight * np.float32(flat[d])
        if flip_signs:
            values = out[row].reshape(channels * pixels)  # a view: [C,H,W] -> [C*H*W]
            full_bytes = channels * pixels // 8
            for q in range(full_bytes):
                byte = sign_bits[row, q]
                for r in range(8):
                    values[8 * q + r] *= signs_of_byte[byte, r]
            # The last byte may hold fewer than eight signs; its other bits are unused.
            for d in range(8 * full_bytes, channels * pixels):
                values[d] *= signs_of_byte[sign_bits[row, d // 8], d % 8]
