"""Masked sums: integers that hide single updates and add up to their sum.

Values become fixed-point integers modulo 2**32. Each client adds masks, streams of
integers that are uniform to whoever lacks their 32-byte seeds; in the sum of all
clients the masks that pairs agreed on cancel exactly, and so do no rounding errors hang
on keys. Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", CCS 2017.

The masks are ChaCha20 streams. Flower's own mask generator folds its seed into 32 bits
(`flwr.common.secure_aggregation.secaggplus_utils.pseudo_rand_gen`), few enough to try
them all, so it is not used here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.errors import ProtocolError
from instahide_fl.rng import keyed_stream

Vector: TypeAlias = NDArray[np.uint32]


@dataclass(frozen=True)
class FixedPoint:
    """Real numbers as integers modulo 2**32.

    Attributes:
        largest: absolute value that a number may have.
        clients: as many numbers may be added up.
    """

    largest: float
    clients: int

    @property
    def scale(self) -> float:
        """Integers for each 1.0."""
        return math.floor((2**31 - 1) / self.clients) / self.largest

    def encode(self, values: Tensor) -> Vector:
        """Round to integers.

        Args:
            values: f32[N] or wider.

        Returns:
            u32[N].

        Raises:
            ProtocolError: a value is too large, or not a finite number.
        """
        beyond = float(values.abs().max()) if values.numel() else 0.0
        if not beyond <= self.largest:
            raise ProtocolError(
                f"an update with a value of {beyond:.3g} cannot be masked: raise "
                f"secure-aggregation.largest-value (now {self.largest:g}) or lower the "
                f"learning rate"
            )
        whole = (values.to(torch.float64) * self.scale).round().to(torch.int64)
        return whole.numpy().astype(np.uint32)

    def decode(self, total: Vector) -> Tensor:
        """Return the sum of numbers as f64[N].

        Args:
            total: u32[N], the sum of at most `clients` encoded vectors.
        """
        signed = torch.from_numpy(total.view(np.int32).astype(np.float64))
        return signed / self.scale


def mask(seed: bytes, length: int) -> Vector:
    """Return the integers u32[length] that a seed stands for.

    Args:
        seed: 32 bytes.
        length: how many.
    """
    stream = keyed_stream(seed, "mask")
    return stream.integers(0, 2**32, length, dtype=np.uint32)


def add_masks(vector: Vector, added: Iterable[bytes], taken: Iterable[bytes]) -> Vector:
    """Return a vector with masks added and others subtracted, modulo 2**32.

    Args:
        vector: u32[N].
        added: seeds of masks to add.
        taken: seeds of masks to subtract.
    """
    result = vector.copy()
    for seed in added:
        result += mask(seed, len(vector))
    for seed in taken:
        result -= mask(seed, len(vector))
    return result


def flatten_arrays(arrays: Mapping[str, Tensor], factor: float) -> Tensor:
    """Return factor * arrays as one vector f64[N], in the order of their names."""
    parts = [
        arrays[name].detach().cpu().to(torch.float64).flatten()
        for name in sorted(arrays)
    ]
    return torch.cat(parts) * factor


def split_vector(
    vector: Tensor, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return the arrays of a vector, as f32 by name.

    Args:
        vector: f64[N], in the order of names.
        shapes: by name; N values together.
    """
    arrays, start = {}, 0
    for name in sorted(shapes):
        size = math.prod(shapes[name])
        part = vector[start : start + size]
        arrays[name] = part.reshape(shapes[name]).to(torch.float32)
        start += size
    return arrays
