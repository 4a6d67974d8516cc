"""Flower messages <-> the library's values, on the server's side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from torch import Tensor

from instahide_fl.aggregation.mean import WEIGHTS
from instahide_fl.aggregation.reduction import is_finite
from instahide_fl.engine.arrays import from_record, to_record
from instahide_fl.errors import ProtocolError, RoundError
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
)


def questions(node_ids: Iterable[int]) -> list[Message]:
    """Ask nodes who they are."""
    content = RecordDict({ABOUT: ConfigRecord({"schema": SCHEMA})})
    return [Message(content, node_id, MessageType.QUERY) for node_id in node_ids]


def read_description(message: Message) -> ClientDescription:
    """Read a node's answer.

    Raises:
        ProtocolError: the client speaks another version.
    """
    return ClientDescription.from_values(message.content.config_records[ABOUT])


def round_content(
    instruction: RoundInstruction, parameters: Mapping[str, Tensor]
) -> RecordDict:
    """Return what every client of a round's cohort receives; the tensors are shared."""
    about = ConfigRecord(instruction.to_values())  # type: ignore[arg-type]
    return RecordDict({ARRAYS: to_record(parameters), ABOUT: about})


def round_message(content: RecordDict, node_id: int, group_id: str) -> Message:
    """Address a round's content to one node."""
    return Message(content, node_id, MessageType.TRAIN, group_id=group_id)


@dataclass(frozen=True)
class UpdateReader:
    """Checks that a client's reply can be added to the others'.

    It may run beside the clients, where updates are added up before they travel.

    Attributes:
        shapes: of the global parameters, by name.
        kind: what this run's updates are.
        aggregation: the rule, `server.aggregation`.
        tells_loss: whether clients say what their training loss was.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kind: UpdateKind
    aggregation: str
    tells_loss: bool = True

    def read(self, reply: Message, check_finite: bool = True) -> ClientUpdate:
        """Return the update in a reply.

        Args:
            reply: of a client.
            check_finite: refuse values that are not finite numbers.

        Raises:
            RoundError: the client failed; with its own reason.
            ProtocolError: the client speaks another version, records are missing, or
                its arrays are not finite numbers in the shapes of the parameters.
        """
        if reply.has_error():
            raise RoundError(failure_reason(reply))
        try:
            return self._read(reply.content, check_finite)
        except KeyError as error:
            raise ProtocolError(f"a client's reply lacks the record {error}") from None

    def weight(self, update: ClientUpdate) -> float:
        """Return how much an update counts in the aggregate."""
        return WEIGHTS[self.aggregation](update)

    def _read(self, content: RecordDict, check_finite: bool) -> ClientUpdate:
        about, record, metrics = content[ABOUT], content[ARRAYS], content[METRICS]
        if not (
            isinstance(about, ConfigRecord)
            and isinstance(record, ArrayRecord)
            and isinstance(metrics, MetricRecord)
        ):
            raise ProtocolError("a client's reply has a record of another type")
        header, arrays = UpdateHeader.from_values(about), from_record(record)
        whose = f"the update of client {header.client}"
        if {name: array.shape for name, array in arrays.items()} != self.shapes:
            raise ProtocolError(f"{whose} does not have the model's parameters")
        if check_finite and not all(map(is_finite, arrays.values())):
            raise ProtocolError(
                f"{whose} has values that are not finite: lower the learning rate"
            )
        if header.kind != self.kind:
            raise ProtocolError(
                f"{whose} is a {header.kind}, this run needs a {self.kind}"
            )
        numbers = {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float)
        }
        examples = int(numbers.pop(NUM_EXAMPLES, 0))
        if examples < 1:
            raise ProtocolError(f"{whose} was computed on no image")
        if self.tells_loss and "train_loss" not in numbers:
            raise KeyError(f"{METRICS}/train_loss")
        return ClientUpdate(arrays, examples, self.kind, numbers)


def failure_reason(message: Message) -> str:
    """Return why a client failed, in one line, without Flower's and Ray's wrapping."""
    given = message.error.reason or f"error code {message.error.code}"
    reason = re.sub(r"^<class '[\w.]+'>:<'", "", given)
    wrapped = re.findall(r"ClientAppException occurred\. Message: ([^\n]*)", reason)
    line = wrapped[-1] if wrapped else reason.strip().splitlines()[-1]
    return str(line).removesuffix("'>").strip()
