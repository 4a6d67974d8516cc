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
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from instahide_fl.flower.arrays import (
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
    torch.tensor(7.0),
    torch.tensor([True, False]),
    torch.ones(3, requires_grad=True),
    torch.zeros(3_000_000, dtype=torch.float16),  # more than one chunk on the wire
]


def flowers_array(tensor):
    return Array(tensor.detach().clone(memory_format=torch.contiguous_format))


@pytest.mark.parametrize("tensor", TENSORS)
def test_it_gives_the_bytes_of_flowers_array(tensor):
    ours, flowers = TensorArray(tensor), flowers_array(tensor)
    for field in ("dtype", "shape", "stype", "data", "object_id"):
        assert getattr(ours, field) == getattr(flowers, field)
    assert ours.deflate() == flowers.deflate()
    assert ours.children.keys() == flowers.children.keys()
    np.testing.assert_array_equal(ours.numpy(), flowers.numpy(), strict=True)


def test_it_equals_arrays_of_the_same_values_only():
    tensor = TENSORS[0]
    ours, flowers = TensorArray(tensor), flowers_array(tensor)
    assert ours == flowers
    assert flowers == ours
    assert ours == TensorArray(tensor.clone())
    for other in (tensor + 1, tensor.double(), tensor.flatten()):
        assert ours != TensorArray(other)
        assert ours != flowers_array(other)
    assert ours != tensor.tolist()


@pytest.mark.parametrize("tensor", TENSORS)
def test_it_travels_as_flowers_array(tensor):
    sent = pickle.loads(pickle.dumps(TensorArray(tensor)))
    assert type(sent) is Array
    assert sent == flowers_array(tensor)


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


def test_a_message_is_taken_apart_and_put_together_as_flowers_transport_does():
    tensors = {str(i): tensor.detach() for i, tensor in enumerate(TENSORS)}
    plain = ArrayRecord({n: flowers_array(a) for n, a in tensors.items()})
    ours, flowers = (
        RecordDict({"arrays": record}) for record in (to_record(tensors), plain)
    )
    contents, expected = (
        {name: part.deflate() for name, part in get_all_nested_objects(one).items()}
        for one in (ours, flowers)
    )
    assert contents == expected
    arrived = inflate_object_from_contents(ours.object_id, contents)
    back = from_record(array_records(arrived)["arrays"])
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_a_record_shares_the_tensors_and_is_an_ordinary_record():
    tensor = torch.ones(2)
    record = to_record({"b": tensor, "a": torch.zeros(1)})
    assert list(record) == [name for name, _ in record.items()] == ["a", "b"]
    assert from_record(record)["b"] is tensor
    assert [array.tolist() for array in record.to_numpy_ndarrays()] == [[0], [1, 1]]
    plain = {"a": Array(np.zeros(1, np.float32)), "b": Array(np.ones(2, np.float32))}
    assert record == ArrayRecord(plain)
    record["c"] = Array(np.ones(3))
    assert record != ArrayRecord(plain)
    assert from_record(record)["c"].tolist() == [1, 1, 1]
    with pytest.raises(TypeError):
        record["d"] = tensor
    del record["b"]
    assert from_record(record).keys() == {"a", "c"}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_record_gives_a_state_dict():
    model, copied = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    copied.load_state_dict(to_record(model.state_dict()).to_torch_state_dict())
    assert torch.equal(copied.weight, model.weight)
    assert torch.equal(copied.bias, model.bias)


def test_reading_a_messages_arrays_leaves_no_circle_of_references():
    content = RecordDict({"arrays": to_record({"a": torch.zeros(1)})})
    gc.disable()
    try:
        gone = weakref.ref(array_records(content)["arrays"])
        del content
        assert gone() is None
    finally:
        gc.enable()
