"""Tensors in Flower records, without bytes as long as nobody asks for any.

Flower's `Array` holds serialised bytes. Inside one process, where a message is only
handed from the server to a client or back, making and reading those bytes costs more
than a small client's whole round. A `TensorArray` is an `Array` that keeps the tensor;
whoever sends it somewhere (Flower's transport, pickle) gets the same bytes as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor


class TensorArray(Array):
    """A Flower `Array` around a tensor.

    Args:
        tensor: of a dtype that numpy has, on any device; shared, not copied, so it must
            not change as long as the array is in use.
    """

    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        # Past Array's own __init__ and __setattr__, which want the bytes.
        self.__dict__.update(
            tensor=tensor.detach(),
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            stype="numpy.ndarray",
        )

    @cached_property
    def _serialised(self) -> Array:
        return Array(np.ascontiguousarray(self.tensor.cpu().numpy()))

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The serialised tensor, made on first use."""
        return self._serialised.data

    def numpy(self) -> NDArray[Any]:
        """Return a read-only view (a copy if the tensor is not on the CPU)."""
        array: NDArray[Any] = self.tensor.cpu().numpy().view()
        array.flags.writeable = False
        return array

    def deflate(self) -> bytes:
        """Return the bytes that name this object on Flower's wire: a plain Array's."""
        return self._serialised.deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        plain = self._serialised
        return Array, (plain.dtype, plain.shape, plain.stype, plain.data)

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorArray:
        return TensorArray(self.tensor.clone())


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return a record of tensors, in the order of their names, without copying."""
    return ArrayRecord({name: TensorArray(tensors[name]) for name in sorted(tensors)})


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Return a record's tensors in the order of their names.

    Args:
        record: of any `Array`s in numpy's format.

    Returns:
        By name. Tensors of `TensorArray`s are shared with it: do not write to them.
    """
    return {name: _tensor(record[name]) for name in sorted(record)}


def _tensor(array: Array) -> Tensor:
    if isinstance(array, TensorArray):
        return array.tensor
    return torch.from_numpy(array.numpy())
