"""Which stored pixel values become 0 and 255, for pictures deeper than 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

DEPTHS = (8, 10, 12, 14, 16, 24, 31, 32)  # bits of a pixel that cameras and files use
MIN_SHARE_USED = 1 / 8  # of a range that the greatest value has to reach
EIGHT_BITS = (0.0, 255.0)


@dataclass(frozen=True)
class ValueSummary:
    """The stored values of some pictures.

    Attributes:
        low: The smallest finite value.
        high: The greatest finite value.
        num_values: The number of values.
        num_outside: The number of values outside the range that was asked about.
        num_not_finite: The number of values that are NaN or infinite.
    """

    low: float = np.inf
    high: float = -np.inf
    num_values: int = 0
    num_outside: int = 0
    num_not_finite: int = 0

    @classmethod
    def of(
        cls,
        values: np.ndarray[Any, Any],
        value_range: tuple[float, float] | None = None,
    ) -> ValueSummary:
        """Summarise values.

        Args:
            values: Numbers of any type and shape.
            value_range: The range (low, high) whose outside is counted; None for none.
        """
        finite = values
        if values.dtype.kind == "f":
            finite = values[np.isfinite(values)]
        if not finite.size:
            return cls(num_values=values.size, num_not_finite=values.size)
        num_outside = 0
        if value_range is not None:
            low, high = value_range
            num_outside = int(((finite < low) | (finite > high)).sum())
        return cls(
            low=float(finite.min()),
            high=float(finite.max()),
            num_values=values.size,
            num_outside=num_outside,
            num_not_finite=values.size - finite.size,
        )

    def joined(self, other: ValueSummary) -> ValueSummary:
        """Return the summary of both sets of values.

        Args:
            other: The other summary.
        """
        return ValueSummary(
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            num_values=self.num_values + other.num_values,
            num_outside=self.num_outside + other.num_outside,
            num_not_finite=self.num_not_finite + other.num_not_finite,
        )


def choose_range(
    low: float, high: float, *, is_float: bool
) -> tuple[tuple[float, float], str]:
    """Choose the range of a data set from its smallest and greatest value.

    Integers from 0 on take the smallest usual depth that holds them, because a camera
    of 12 bits stores its values in 16. Fractions are taken as 0 to 1 or 0 to 255 where
    they lie there. A range that the values would hardly use, and all other values, are
    replaced by the values' own range.

    Args:
        low: The smallest value.
        high: The greatest value.
        is_float: Whether the values are floating-point numbers.

    Returns:
        The range (low, high), and why, as a phrase.

    Raises:
        ValueError: The values are all equal, and no usual range holds them.
    """
    if low >= 0:
        tops = (1.0, 255.0) if is_float else tuple(2.0**bits - 1 for bits in DEPTHS)
        top = next((top for top in tops if high <= top), None)
        if top is not None and high >= top * MIN_SHARE_USED:
            range_name = f"[0, {top:.0f}]"
            if not is_float:
                range_name = f"{DEPTHS[tops.index(top)]} bits"
            return (0.0, top), f"greatest value {high:.6g} fits in {range_name}"
        if not is_float and high > 0:
            return (0.0, high), "0 to the greatest value"
    if low == high:
        raise ValueError(f"all values are {low:.10g}")
    return (low, high), "smallest and greatest value of all pictures"


def map_to_8_bits(
    values: np.ndarray[Any, Any], value_range: tuple[float, float]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Map values linearly so that the range becomes 0..255; round and clip.

    Args:
        values: Finite numbers of any type and shape.
        value_range: The values (low, high) that become 0 and 255.

    Returns:
        u8 of the same shape.
    """
    low, high = value_range
    # Multiplied before divided: integers then give the exact quotient.
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def format_range(value_range: tuple[float, float]) -> str:
    """Write a range as `data.value-range` takes it.

    Args:
        value_range: The range (low, high).
    """
    low, high = value_range
    return f"{low:.10g}:{high:.10g}"
