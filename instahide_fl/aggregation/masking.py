"""Masked sums: integers that hide single updates and add up to their sum.

Values become fixed-point integers modulo 2**32. Each client adds masks: streams of
integers that look uniform to anyone without their 32-byte seeds. In the sum of all
clients the masks that pairs agreed on cancel. The integers modulo 2**32 form a ring, in
which they cancel exactly and in any order; floating-point masks would leave rounding
errors that depend on the keys, and could not hide the size of what they are added to.
Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS 2017.

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

from instahide_fl.aggregation.reduction import MAX_UPDATE_VALUE
from instahide_fl.errors import ProtocolError
from instahide_fl.rng import keyed_stream
from instahide_fl.wire.refusals import refused

Vector: TypeAlias = NDArray[np.uint32]


@dataclass(frozen=True)
class FixedPoint:
    """Real numbers as integers modulo 2**32.

    Attributes:
        max_value: The largest absolute value that a number may have.
        num_clients: The most numbers that are added up.
    """

    max_value: float
    num_clients: int

    @property
    def scale(self) -> float:
        """The integer that stands for 1.0, before rounding."""
        # The sum of all clients stays below 2**31, so that its sign can be read.
        return math.floor((2**31 - 1) / self.num_clients) / self.max_value

    def encode(self, values: Tensor) -> Vector:
        """Round numbers to integers.

        Args:
            values: The numbers, f32[N] or wider.

        Returns:
            u32[N]; a negative number is its complement modulo 2**32.

        Raises:
            ProtocolError: a value is too large, or not a finite number.
        """
        magnitude = float(values.abs().max()) if values.numel() else 0.0
        if not magnitude <= MAX_UPDATE_VALUE:  # so written, it refuses NaN too
            error = ProtocolError(
                f"an update with a value of {magnitude:.3g} cannot be masked: lower "
                f"the learning rate"
            )
            raise refused(error, "not-finite")
        if magnitude > self.max_value:
            error = ProtocolError(
                f"an update with a value of {magnitude:.3g} cannot be masked: raise "
                f"secure-aggregation.largest-value (now {self.max_value:g}) or lower "
                f"the learning rate"
            )
            raise refused(error, "largest-value")
        integers = (values.to(torch.float64) * self.scale).round().to(torch.int64)
        return integers.numpy().astype(np.uint32)

    def decode(self, total: Vector) -> Tensor:
        """Return the sum of numbers as f64[N].

        Args:
            total: The sum of at most `num_clients` encoded vectors, u32[N].
        """
        signed = torch.from_numpy(total.view(np.int32).astype(np.float64))
        return signed / self.scale


def expand_mask(seed: bytes, length: int) -> Vector:
    """Return the mask that a seed stands for: integers u32[length].

    Args:
        seed: 32 bytes.
        length: Number of integers.
    """
    stream = keyed_stream(seed, "mask")
    return stream.integers(0, 2**32, length, dtype=np.uint32)


def add_masks(
    vector: Vector, added: Iterable[bytes], subtracted: Iterable[bytes]
) -> Vector:
    """Return a vector with masks added and others subtracted, modulo 2**32.

    Args:
        vector: The integers, u32[N]; not written to.
        added: Seeds of the masks to add.
        subtracted: Seeds of the masks to subtract.
    """
    masked = vector.copy()
    for seed in added:
        masked += expand_mask(seed, len(vector))
    for seed in subtracted:
        masked -= expand_mask(seed, len(vector))
    return masked


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
        vector: The arrays' values one after another, f64[N], in the order of names.
        shapes: Each array's shape by name; together they hold N values.
    """
    arrays, start = {}, 0
    for name in sorted(shapes):
        size = math.prod(shapes[name])
        part = vector[start : start + size]
        arrays[name] = part.reshape(shapes[name]).to(torch.float32)
        start += size
    return arrays
