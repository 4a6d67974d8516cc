"""Flower messages <-> the library's values, on the client's side."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from torch import Tensor

from instahide_fl.engine.arrays import from_record, to_record
from instahide_fl.errors import ProtocolError
from instahide_fl.types import ClientUpdate
from instahide_fl.wire import (
    ABOUT,
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    ClientDescription,
    RoundInstruction,
    UpdateHeader,
)

_CONTROL = "control"  # a record in Context.state, which stays on the node


def read_control(context: Context) -> dict[str, Tensor]:
    """Return the client's control variate by parameter name; empty before its first."""
    record = context.state.array_records.get(_CONTROL)
    return {} if record is None else from_record(record)


def move_control(context: Context, difference: Mapping[str, Tensor]) -> None:
    """Add to the client's control variate; before its first round it is zero."""
    known = read_control(context)
    moved = {name: array.cpu() for name, array in difference.items()}
    if known:
        moved = {name: known[name] + array for name, array in moved.items()}
    context.state[_CONTROL] = to_record(moved)


def read_round(message: Message) -> tuple[RoundInstruction, dict[str, Tensor]]:
    """Return a round's instruction and the global arrays, not to be written to.

    Raises:
        ProtocolError: the server speaks another version.
    """
    about, arrays = message.content[ABOUT], message.content[ARRAYS]
    if not isinstance(about, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise ProtocolError(f"a round's {ABOUT} or {ARRAYS} record is of another type")
    return RoundInstruction.from_values(about), from_record(arrays)


def reply_description(message: Message, description: ClientDescription) -> Message:
    """Answer the server's first question."""
    about = ConfigRecord(description.to_values())  # type: ignore[arg-type]
    return Message(RecordDict({ABOUT: about}), reply_to=message)


def reply_update(
    message: Message, client: str, update: ClientUpdate, round_number: int
) -> Message:
    """Send an update: arrays, who and what kind, and numbers. Nothing else."""
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
