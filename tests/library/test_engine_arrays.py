"""An array around a tensor is, to everybody else, Flower's own."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from instahide_fl.engine.arrays import (
    TensorArray,
    array_records,
    from_record,
    to_record,
)

TENSORS = [
    torch.arange(6.0).view(2, 3),
    torch.arange(6.0).view(2, 3).T,
    torch.zeros(0, 3, dtype=torch.float64),
    torch.tensor([7], dtype=torch.int64),
]


@pytest.mark.parametrize("tensor", TENSORS)
def test_it_gives_the_bytes_of_flowers_array(tensor):
    ours, flowers = TensorArray(tensor), Array(np.ascontiguousarray(tensor.numpy()))
    assert (ours.dtype, ours.shape, ours.stype) == (
        flowers.dtype,
        tuple(flowers.shape),
        flowers.stype,
    )
    assert ours.data == flowers.data
    assert ours.deflate() == flowers.deflate()
    np.testing.assert_array_equal(ours.numpy(), flowers.numpy())


def test_it_travels_as_flowers_array():
    sent = pickle.loads(pickle.dumps(TensorArray(TENSORS[0])))
    assert type(sent) is Array
    np.testing.assert_array_equal(sent.numpy(), TENSORS[0].numpy())


def test_a_copy_has_memory_of_its_own_and_a_view_cannot_be_written_to():
    tensor = torch.zeros(2)
    copied = copy.deepcopy(TensorArray(tensor))
    tensor += 1
    assert copied.numpy().tolist() == [0, 0]
    with pytest.raises(ValueError, match="read-only"):
        TensorArray(tensor).numpy()[0] = 5


def test_a_message_with_it_is_the_message_with_flowers_arrays():
    tensors = {"b": torch.ones(2), "a": torch.arange(3)}
    plain = ArrayRecord({n: Array(tensors[n].numpy()) for n in sorted(tensors)})
    about = ConfigRecord({"round": 1})
    ours, flowers = (
        RecordDict({"arrays": record, "about": about})
        for record in (to_record(tensors), plain)
    )
    expected = recorddict_to_proto(flowers).SerializeToString(deterministic=True)
    assert recorddict_to_proto(ours).SerializeToString(deterministic=True) == expected
    back = from_record(pickle.loads(pickle.dumps(ours)).array_records["arrays"])
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_a_record_shares_the_tensors_and_is_an_ordinary_record():
    tensor = torch.ones(2)
    record = to_record({"b": tensor, "a": torch.zeros(1)})
    assert list(record) == ["a", "b"]
    assert from_record(record)["b"] is tensor
    assert [array.tolist() for array in record.to_numpy_ndarrays()] == [[0], [1, 1]]
    record["c"] = Array(np.ones(3))
    assert from_record(record)["c"].tolist() == [1, 1, 1]
    with pytest.raises(TypeError):
        record["d"] = tensor


def test_reading_a_messages_arrays_leaves_no_circle_of_references():
    content = RecordDict({"arrays": to_record({"a": torch.zeros(1)})})
    gc.disable()
    try:
        gone = weakref.ref(array_records(content)["arrays"])
        del content
        assert gone() is None
    finally:
        gc.enable()
