"""The encoding of a whole batch in one pass over bytes, compiled by numba.

Equation and order of operations are those of `mixing.mix_and_flip`; normalisation is
folded into one factor and one constant per source and channel. Sources stay uint8 where
they are (rows of a shared array, of a memory map): no image is gathered, converted or
padded before it is added up.
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

ROWS_PER_THREAD = 128  # fewer are done sooner than handed to another thread


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
    """Encode: signs * sum_j coefficients[:, j] * normalised source j.

    The result does not depend on the number of threads (`torch.get_num_threads`).

    Args:
        private: u8[M,C,H,W], C-contiguous.
        private_rows: i64[B,p] into it.
        private_statistics: constants of the private images.
        public: u8[P,C,H,W], C-contiguous; may be empty.
        public_rows: i64[B,k-p] into it.
        public_statistics: constants of the public images.
        coefficients: f32[B,k], private ones first.
        sign_bits: u8[B,ceil(C*H*W/8)], most significant bit first, 1 for +1; None
            leaves signs alone.
        crop: offsets i64[B*p,2], flips bool[B*p] and padding of the private sources in
            row order, see `data.augment`; None for none.

    Returns:
        f32[B,C,H,W].
    """
    count = len(coefficients)
    out = np.empty((count, *private.shape[1:]), np.float32)
    masked = sign_bits is not None
    bits = sign_bits if sign_bits is not None else np.empty((0, 0), np.uint8)
    sources = (
        *(private, private_rows, *_folded(private_statistics)),
        *(public, public_rows, *_folded(public_statistics)),
    )
    mixing = (coefficients, bits, masked, _SIGNS)
    moved = crop or (_NO_OFFSETS, _NO_FLIPS, -1)

    def encode(start: int, stop: int) -> None:
        _kernel()(start, stop, *sources, *mixing, *moved, out)

    threads = min(torch.get_num_threads(), count // ROWS_PER_THREAD)
    if threads < 2:
        encode(0, count)
        return out
    bounds = np.linspace(0, count, threads + 1).astype(int).tolist()
    list(_threads(threads).map(encode, bounds[:-1], bounds[1:]))
    return out


def prepare() -> None:
    """Compile the loop, or load it from numba's cache, so that later calls are fast."""
    _kernel()


_NO_OFFSETS = np.empty((0, 2), np.int64)
_NO_FLIPS = np.empty(0, np.bool_)
# Row b holds the eight signs that byte b stands for.
_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) * np.float32(
    2
) - np.float32(1)


@lru_cache(maxsize=64)
def _folded(statistics: ChannelStatistics) -> tuple[Floats, Floats]:
    """Return scale and shift: (x / 255 - mean) / std = x * scale + shift."""
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

    images = uint8[:, :, :, ::1]
    rows, scale = int64[:, :], float32[::1]
    signature = void(
        *(int64, int64),
        *(images, rows, scale, scale),
        *(images, rows, scale, scale),
        *(float32[:, ::1], uint8[:, ::1], boolean, float32[:, ::1]),
        *(int64[:, ::1], boolean[::1], int64),
        float32[:, :, :, ::1],
    )
    # nogil and threads of our own instead of numba's: those do not mix with many
    # processes, and take several times as long to compile.
    compiled: Callable[..., None] = numba.njit(
        signature, nogil=True, cache=True, boundscheck=False
    )(_encode_rows)
    return compiled


def _encode_rows(
    start: int,
    stop: int,
    private: Bytes,
    private_rows: Indices,
    private_scale: Floats,
    private_shift: Floats,
    public: Bytes,
    public_rows: Indices,
    public_scale: Floats,
    public_shift: Floats,
    coefficients: Floats,
    bits: Bytes,
    masked: bool,
    signs: Floats,
    offsets: Indices,
    flips: NDArray[np.bool_],
    padding: int,
    out: Floats,
) -> None:
    # Longer than other functions here: numba compiles it as one nest of loops.
    channels, height, width = out.shape[1], out.shape[2], out.shape[3]
    pixels = height * width
    mixed = private_rows.shape[1]
    for row in range(start, stop):
        for channel in range(channels):
            plane = out[row, channel].reshape(pixels)
            constant = np.float32(0)
            for j in range(coefficients.shape[1]):
                shift = private_shift if j < mixed else public_shift
                constant += coefficients[row, j] * shift[channel]
            for d in range(pixels):
                plane[d] = constant
            for j in range(mixed):
                weight = coefficients[row, j] * private_scale[channel]
                image = private[private_rows[row, j], channel]
                if padding < 0:
                    flat = image.reshape(pixels)
                    for d in range(pixels):
                        plane[d] += weight * np.float32(flat[d])
                    continue
                # Outside of the image the padding is 0: nothing to add.
                top = offsets[row * mixed + j, 0] - padding
                left = offsets[row * mixed + j, 1] - padding
                flip = flips[row * mixed + j]
                for y in range(max(0, -top), min(height, height - top)):
                    source = image[y + top]
                    for x in range(max(0, left), min(width, width + left)):
                        target = x - left
                        if flip:
                            target = width - 1 - target
                        plane[y * width + target] += weight * np.float32(source[x])
            for j in range(public_rows.shape[1]):
                weight = coefficients[row, mixed + j] * public_scale[channel]
                flat = public[public_rows[row, j], channel].reshape(pixels)
                for d in range(pixels):
                    plane[d] += weight * np.float32(flat[d])
        if masked:
            flat_out = out[row].reshape(channels * pixels)
            whole = channels * pixels // 8
            for q in range(whole):
                byte = bits[row, q]
                for r in range(8):
                    flat_out[8 * q + r] *= signs[byte, r]
            for d in range(8 * whole, channels * pixels):
                flat_out[d] *= signs[bits[row, d // 8], d % 8]
