"""Flower messages <-> the library's values, on the server's side."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    RecordDict,
)
from torch import Tensor

from instahide_fl.errors import ProtocolError
from instahide_fl.types import ClientUpdate, UpdateKind
from instahide_fl.wire import (
    ABOUT,
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    SCHEMA,
    ClientDescription,
    RoundInstruction,
    UpdateHeader,
    to_arrays,
    to_tensors,
)


def question(node_id: int) -> Message:
    """Ask a node who it is."""
    content = RecordDict({ABOUT: ConfigRecord({"schema": SCHEMA})})
    return Message(content, node_id, MessageType.QUERY)


def read_description(message: Message) -> ClientDescription:
    """Read a node's answer.

    Raises:
        ProtocolError: the client speaks another version.
    """
    return ClientDescription.from_values(message.content.config_records[ABOUT])


def round_content(
    instruction: RoundInstruction, parameters: Mapping[str, Tensor]
) -> RecordDict:
    """Return what every client of a round's cohort receives."""
    arrays = to_arrays(parameters)
    return RecordDict(
        {
            ARRAYS: ArrayRecord({name: Array(value) for name, value in arrays.items()}),
            ABOUT: ConfigRecord(instruction.to_values()),  # type: ignore[arg-type]
        }
    )


def round_message(content: RecordDict, node_id: int, round_number: int) -> Message:
    """Address a round's content to one node."""
    return Message(content, node_id, MessageType.TRAIN, group_id=str(round_number))


def read_update(
    message: Message, parameters: Mapping[str, Tensor], kind: UpdateKind
) -> ClientUpdate:
    """Read a client's update and check that it can be added to the others.

    Args:
        message: the reply, without an error.
        parameters: the global ones, for names and shapes.
        kind: what this run's updates are.

    Raises:
        ProtocolError: the client speaks another version, records are missing, or its
            arrays are not finite numbers in the shapes of the parameters.
    """
    try:
        return _checked_update(message.content, parameters, kind)
    except KeyError as error:
        raise ProtocolError(f"a client's reply lacks the record {error}") from None


def _checked_update(
    content: RecordDict, parameters: Mapping[str, Tensor], kind: UpdateKind
) -> ClientUpdate:
    header = UpdateHeader.from_values(content.config_records[ABOUT])
    record = content.array_records[ARRAYS]
    arrays = to_tensors({name: array.numpy() for name, array in record.items()})
    expected = {name: tuple(value.shape) for name, value in parameters.items()}
    if {name: tuple(value.shape) for name, value in arrays.items()} != expected:
        raise ProtocolError(
            f"the update of client {header.client} does not have the model's parameters"
        )
    if not all(torch.isfinite(value).all() for value in arrays.values()):
        raise ProtocolError(
            f"the update of client {header.client} has values that are not finite: "
            f"lower the learning rate"
        )
    if header.kind != kind:
        raise ProtocolError(
            f"the update of client {header.client} is a {header.kind}, this run needs "
            f"a {kind}"
        )
    numbers = {
        name: float(value)
        for name, value in content.metric_records[METRICS].items()
        if isinstance(value, int | float)
    }
    examples = int(numbers.pop(NUM_EXAMPLES, 0))
    if examples < 1:
        raise ProtocolError(
            f"the update of client {header.client} was computed on no image"
        )
    if "train_loss" not in numbers:
        raise KeyError(f"{METRICS}/train_loss")
    return ClientUpdate(arrays, examples, kind, numbers)


def failure_reason(message: Message) -> str:
    """Return why a client failed, in one line, without Flower's and Ray's wrapping."""
    reason = message.error.reason or f"error code {message.error.code}"
    wrapped = re.findall(r"ClientAppException occurred\. Message: ([^\n]*)", reason)
    line = wrapped[-1] if wrapped else reason.strip().splitlines()[-1]
    return str(line).removesuffix("'>").strip()
