"""Conversion of Flower messages to and from the library's values, for clients."""

from __future__ import annotations

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)

from instahide_fl.errors import ProtocolError
from instahide_fl.flower.arrays import to_record
from instahide_fl.types import ClientUpdate
from instahide_fl.wire.messages import (
    ABOUT,
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    ClientDescription,
    DescriptionQuery,
    RoundInstruction,
    UpdateHeader,
)


def read_round(message: Message) -> tuple[RoundInstruction, ArrayRecord]:
    """Return a round's instruction and the record of the global arrays, not decoded.

    Raises:
        ProtocolError: the server speaks another version.
    """
    fields, arrays = message.content.get(ABOUT), message.content.get(ARRAYS)
    if not isinstance(fields, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise ProtocolError(f"a round's {ABOUT} or {ARRAYS} record is of another type")
    return RoundInstruction.from_values(fields), arrays


def read_query(message: Message) -> DescriptionQuery:
    """Read the server's first question.

    Raises:
        ProtocolError: the server speaks another version.
    """
    fields = message.content.get(ABOUT)
    if not isinstance(fields, ConfigRecord):
        raise ProtocolError(f"the first question's {ABOUT} record is of another type")
    return DescriptionQuery.from_values(fields)


def reply_description(message: Message, description: ClientDescription) -> Message:
    """Answer the server's first question."""
    fields = ConfigRecord(description.to_values())  # type: ignore[arg-type]
    return Message(RecordDict({ABOUT: fields}), reply_to=message)


def reply_update(
    message: Message, client: str, update: ClientUpdate, round_number: int
) -> Message:
    """Send an update: its arrays, sender, kind and figures, and nothing else."""
    header = UpdateHeader(client, update.kind, round_number)
    content = RecordDict(
        {
            ARRAYS: to_record(update.arrays),
            ABOUT: ConfigRecord(header.to_values()),  # type: ignore[arg-type]
            METRICS: MetricRecord(
                {NUM_EXAMPLES: update.num_examples, **update.metrics}
            ),
        }
    )
    return Message(content, reply_to=message)
