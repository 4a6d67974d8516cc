"""Flower messages <-> the library's values, on the client's side."""

from __future__ import annotations

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from torch import Tensor

from instahide_fl.types import ClientUpdate
from instahide_fl.wire import (
    ABOUT,
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    ClientDescription,
    RoundInstruction,
    UpdateHeader,
    to_arrays,
    to_tensors,
)


def read_round(message: Message) -> tuple[RoundInstruction, dict[str, Tensor]]:
    """Return a round's instruction and the global parameters.

    Raises:
        ProtocolError: the server speaks another version.
    """
    instruction = RoundInstruction.from_values(message.content.config_records[ABOUT])
    record = message.content.array_records[ARRAYS]
    arrays = {name: array.numpy() for name, array in record.items()}
    return instruction, to_tensors(arrays)


def reply_description(message: Message, description: ClientDescription) -> Message:
    """Answer the server's first question."""
    about = ConfigRecord(description.to_values())  # type: ignore[arg-type]
    return Message(RecordDict({ABOUT: about}), reply_to=message)


def reply_update(message: Message, client: str, update: ClientUpdate) -> Message:
    """Send an update: arrays, who and what kind, and numbers. Nothing else."""
    header = UpdateHeader(client, update.kind)
    arrays = to_arrays(update.arrays)
    content = RecordDict(
        {
            ARRAYS: ArrayRecord({name: Array(value) for name, value in arrays.items()}),
            ABOUT: ConfigRecord(header.to_values()),  # type: ignore[arg-type]
            METRICS: MetricRecord(
                {NUM_EXAMPLES: update.num_examples, **update.metrics}
            ),
        }
    )
    return Message(content, reply_to=message)
