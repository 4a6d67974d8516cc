"""Tensors in Flower records, without bytes as long as nobody asks for any.

Flower's `Array` holds serialised bytes. Inside one process, where a message is only
handed from the server to a client or back, making and reading those bytes costs more
than a small client's whole round. A `TensorArray` is an `Array` that keeps the tensor;
whoever sends it somewhere (Flower's transport, pickle) gets the same bytes as ever.

What is private in Flower here, and checked by tests/library/test_engine_arrays.py: an
`Array` keeps its fields, and a record its items, in `__dict__`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor


class TensorArray(Array):
    """A Flower `Array` around a tensor.

    Args:
        tensor: of a dtype that numpy has, on any device; shared, not copied, so it must
            not change as long as the array is in use.
    """

    stype = "numpy.ndarray"

    def __init__(self, tensor: Tensor) -> None:
        # Past Array's own __init__ and __setattr__, which want the bytes.
        self.__dict__["tensor"] = tensor

    tensor: Tensor

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """Name of the dtype, for instance "float32"."""
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the tensor."""
        return tuple(self.tensor.shape)

    @cached_property
    def _serialised(self) -> Array:
        # Unlike np.ascontiguousarray, this leaves a single number without dimensions.
        return Array(np.asarray(self.tensor.detach().cpu().numpy(), order="C"))

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The serialised tensor, made on first use."""
        return self._serialised.data

    def numpy(self) -> NDArray[Any]:
        """Return a read-only view (a copy if the tensor is not on the CPU)."""
        array: NDArray[Any] = self.tensor.detach().cpu().numpy().view()
        array.flags.writeable = False
        return array

    def deflate(self) -> bytes:
        """Return the bytes that name this object on Flower's wire: a plain Array's."""
        return self._serialised.deflate()

    def __eq__(self, other: object) -> bool:
        # Array's own compares nothing but arrays of one class.
        if isinstance(other, TensorArray):
            other = other._serialised
        return self._serialised == other

    def __reduce__(self) -> tuple[Any, ...]:
        plain = self._serialised
        return Array, (plain.dtype, plain.shape, plain.stype, plain.data)

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorArray:
        return TensorArray(self.tensor.clone())


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return a record of tensors, in the order of their names, without copying."""
    # Past the record's own methods: its constructor would copy every array's bytes, and
    # setting items one by one would check types for longer than a small sum takes.
    record = ArrayRecord()
    record.__dict__["_data"] = {n: TensorArray(tensors[n]) for n in sorted(tensors)}
    return record


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Return a record's tensors in the order of their names.

    Args:
        record: of any `Array`s in numpy's format.

    Returns:
        By name. Tensors of `TensorArray`s are shared with it: do not write to them.
    """
    return {name: _tensor(record[name]) for name in sorted(record)}


def array_records(content: RecordDict) -> dict[str, ArrayRecord]:
    """Return a message's array records by name.

    Unlike `RecordDict.array_records`, which leaves a circle of references behind: the
    arrays would stay in memory until Python's garbage collector comes by, long after
    the next ones came.
    """
    return {n: r for n, r in content.items() if isinstance(r, ArrayRecord)}


def _tensor(array: Array) -> Tensor:
    if isinstance(array, TensorArray):
        return array.tensor
    return torch.from_numpy(array.numpy())
