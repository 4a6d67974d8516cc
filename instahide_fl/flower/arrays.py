"""Tensors in Flower records, without bytes as long as nobody asks for any.

Flower's `Array` holds serialised bytes. Inside one process, where a message is only
handed from the server to a client or back, making and reading those bytes costs more
than a small client's whole round. A `TensorArray` is an `Array` that keeps the tensor;
whoever sends it somewhere (Flower's transport, pickle) gets the same bytes as ever.

What this relies on (flwr 1.41 and 1.42): an `Array` keeps its fields in `__dict__`, and
a record its items in `__dict__["_data"]`. If another version keeps them elsewhere, the
first round fails for want of arrays; tests/library/test_engine_arrays.py tells.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.data.npy_files import NPY_READ_ERRORS
from instahide_fl.errors import ProtocolError

HEADER_BYTES = 4096  # more than numpy's format puts before the values


class TensorArray(Array):
    """A Flower `Array` around a tensor.

    Args:
        tensor: A tensor of a dtype that numpy has, on any device; shared, not copied,
            so it must not change as long as the array is in use.
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
        """The tensor's shape."""
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
        record: A record of any `Array`s in numpy's format.

    Returns:
        The tensors by name. Those of `TensorArray`s are shared with the record: do not
        write to them.
    """
    return {name: _tensor(record[name]) for name in sorted(record)}


@dataclass(frozen=True, slots=True)
class ArrayForm:
    """The shape and type that an array has to have.

    Attributes:
        shape: The tensor's shape.
        dtype: Numpy's name of the tensor's dtype, for instance "float32".
    """

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Describe a tensor."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls(tuple(tensor.shape), dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that the values take."""
        size = np.dtype(self.dtype).itemsize
        for length in self.shape:
            size *= length
        return size


def checked_tensors(
    record: ArrayRecord, forms: Mapping[str, ArrayForm]
) -> dict[str, Tensor]:
    """Return an untrusted record's tensors by name, if they are as expected.

    Names, sizes, shapes and dtypes are compared before a byte is decoded: a payload
    cannot make this process take more memory than the arrays it expects.

    Args:
        record: The `Array`s, as they came.
        forms: The form of every array that has to be there, by name.

    Returns:
        The tensors, in the order of their names.

    Raises:
        ProtocolError: Arrays are missing, too many, or of another form.
    """
    if absent := sorted(set(forms) - set(record)):
        raise ProtocolError(f"it lacks the array {absent[0]}")
    if extra := sorted(set(record) - set(forms)):
        raise ProtocolError(f"it has an array {extra[0][:60]!r}, which the model lacks")
    return {name: _checked(name, record[name], forms[name]) for name in sorted(forms)}


def _checked(name: str, array: Array, form: ArrayForm) -> Tensor:
    declared = ArrayForm(tuple(array.shape), str(array.dtype))
    if declared != form:
        raise ProtocolError(
            f"its array {name} is {declared.dtype[:20]}{list(declared.shape)[:8]}, the "
            f"model's is {form.dtype}{list(form.shape)}"
        )
    if isinstance(array, TensorArray):
        return array.tensor
    size = len(array.data)
    if not form.nbytes <= size <= form.nbytes + HEADER_BYTES:
        raise ProtocolError(
            f"its array {name} comes in {size} bytes, {form.nbytes} are expected"
        )
    if array.stype != TensorArray.stype or _header(array.data) != form:
        raise ProtocolError(f"its array {name} is not what it says it is")
    return torch.from_numpy(array.numpy())


def _header(data: bytes) -> ArrayForm | None:
    """Read the header of numpy's format; None if it does not fit the bytes after it."""
    start = io.BytesIO(data[:HEADER_BYTES])
    try:
        version = np.lib.format.read_magic(start)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(start)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(start)
        form = ArrayForm(shape, dtype.name if dtype.isnative else dtype.str)
        # Bytes after the values would be left unread.
        return form if start.tell() + form.nbytes == len(data) else None
    except (*NPY_READ_ERRORS, OverflowError):
        return None


def array_records(content: RecordDict) -> dict[str, ArrayRecord]:
    """Return a message's array records by name.

    `RecordDict.array_records` leaves a cycle of references behind: the arrays would
    stay in memory until Python's garbage collector runs, long after the next ones came.
    """
    return {n: r for n, r in content.items() if isinstance(r, ArrayRecord)}


def _tensor(array: Array) -> Tensor:
    if isinstance(array, TensorArray):
        return array.tensor
    return torch.from_numpy(array.numpy())
