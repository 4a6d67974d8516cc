"""Conversion of Flower messages to and from the library's values, for the server."""

from __future__ import annotations

import math
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

from instahide_fl.aggregation.reduction import MAX_UPDATE_VALUE, is_bounded
from instahide_fl.aggregation.weights import WEIGHTS
from instahide_fl.defenses.transforms import l2_norm
from instahide_fl.errors import ProtocolError, RoundError
from instahide_fl.flower.arrays import ArrayForm, checked_tensors, to_record
from instahide_fl.terminal import printable
from instahide_fl.types import ClientUpdate, UpdateKind
from instahide_fl.wire.messages import (
    ABOUT,
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    ClientDescription,
    DescriptionQuery,
    RoundInstruction,
    UpdateHeader,
    finite_number,
)

# The figures that a client may send beside its arrays; the server ignores all others.
# None of them is ever below zero.
CLIENT_METRICS = (
    "train_loss",
    "seconds",
    "exposures_max",
    "exposures_mean",
    "exposures_beyond",
)


def description_queries(
    node_ids: Iterable[int], query: DescriptionQuery
) -> list[Message]:
    """Return the messages that ask nodes which clients they are."""
    fields = ConfigRecord(query.to_values())  # type: ignore[arg-type]
    content = RecordDict({ABOUT: fields})
    return [Message(content, node_id, MessageType.QUERY) for node_id in node_ids]


def read_description(message: Message) -> ClientDescription:
    """Read a node's answer.

    Raises:
        ProtocolError: the client speaks another version, or its answer makes no sense.
    """
    fields = message.content.get(ABOUT)
    if not isinstance(fields, ConfigRecord):
        raise ProtocolError(f"a client does not say who it is: it sent no {ABOUT}")
    return ClientDescription.from_values(fields)


def round_content(
    instruction: RoundInstruction, parameters: Mapping[str, Tensor]
) -> RecordDict:
    """Return what every client of a round's cohort receives; the tensors are shared."""
    fields = ConfigRecord(instruction.to_values())  # type: ignore[arg-type]
    return RecordDict({ARRAYS: to_record(parameters), ABOUT: fields})


def round_message(content: RecordDict, node_id: int, group_id: str) -> Message:
    """Address a round's content to one node."""
    return Message(content, node_id, MessageType.TRAIN, group_id=group_id)


@dataclass(frozen=True, slots=True)
class Sender:
    """The client of a node, as it described itself before the first round.

    Attributes:
        client: The client's key.
        images: Number of images that it holds.
    """

    client: str
    images: int


@dataclass(frozen=True)
class UpdateReader:
    """Reads updates and checks that they can be added to the others.

    It may run beside the clients, where updates are added up before they travel.

    Attributes:
        forms: Shape and dtype of the global parameters, by name.
        kind: The kind of this run's updates.
        aggregation: The value of `server.aggregation`.
        round: The round whose updates are read.
        senders: The clients of the round's cohort, by node id.
        tells_loss: Whether clients must send their training loss.
        max_norm: Largest L2 norm of an update; 0 sets none.
        measures_norms: Whether whoever collects the updates compares their norms.
    """

    forms: Mapping[str, ArrayForm]
    kind: UpdateKind
    aggregation: str
    round: int
    senders: Mapping[int, Sender]
    tells_loss: bool = True
    max_norm: float = 0.0
    measures_norms: bool = False

    def read(self, reply: Message, check_finite: bool = True) -> ClientUpdate:
        """Return the update in a reply.

        Args:
            reply: a client's reply.
            check_finite: Whether to refuse values that are not finite, or larger than
                any that training gives.

        Raises:
            RoundError: the client failed; with its own reason.
            ProtocolError: the reply is not an update of this client for this round.
        """
        if reply.has_error():
            raise RoundError(failure_reason(reply))
        sender = self.senders.get(reply.metadata.src_node_id)
        if sender is None:
            raise ProtocolError("the reply is of a node that was not asked")
        try:
            return self._read(reply.content, sender, check_finite)
        except ProtocolError as error:
            raise ProtocolError(f"its update is refused: {error}") from None

    def weight(self, update: ClientUpdate) -> float:
        """Return the update's weight in the aggregate."""
        return WEIGHTS[self.aggregation](update)

    def _read(
        self, content: RecordDict, sender: Sender, check_finite: bool
    ) -> ClientUpdate:
        fields, arrays, metrics = records_of_update(content)
        check_header(fields, sender, self.kind, self.round)
        tensors = checked_tensors(arrays, self.forms)
        if check_finite:
            for name, array in tensors.items():
                _check_values(name, array)
        if self.max_norm:
            _check_norm(tensors, self.max_norm)
        examples = metrics.get(NUM_EXAMPLES)
        if type(examples) is not int or not 1 <= examples <= sender.images:
            raise ProtocolError(
                f"{NUM_EXAMPLES} must be from 1 to the {sender.images} images that the "
                f"client holds"
            )
        numbers = read_client_metrics(metrics)
        if self.tells_loss and "train_loss" not in numbers:
            raise ProtocolError("it does not say its train_loss")
        return ClientUpdate(tensors, examples, self.kind, numbers)


def records_of_update(
    content: RecordDict,
) -> tuple[ConfigRecord, ArrayRecord, MetricRecord]:
    """Return the three records of an update.

    Raises:
        ProtocolError: one is missing or of another type, or there are others.
    """
    fields, arrays, metrics = (content.get(name) for name in (ABOUT, ARRAYS, METRICS))
    if extra := sorted(set(content) - {ABOUT, ARRAYS, METRICS}):
        raise ProtocolError(f"it has a record {extra[0][:60]!r} too many")
    if not isinstance(fields, ConfigRecord):
        raise ProtocolError(f"it lacks the record {ABOUT!r}")
    if not isinstance(arrays, ArrayRecord):
        raise ProtocolError(f"it lacks the record {ARRAYS!r}")
    if not isinstance(metrics, MetricRecord):
        raise ProtocolError(f"it lacks the record {METRICS!r}")
    return fields, arrays, metrics


def check_header(
    fields: ConfigRecord, sender: Sender, kind: UpdateKind, round_number: int
) -> None:
    """Check that an update is this client's, of this run's kind and of this round.

    Raises:
        ProtocolError: it is not.
    """
    header = UpdateHeader.from_values(fields)
    if header.client != sender.client:
        raise ProtocolError(f"it calls itself client {header.client[:60]!r}")
    if header.kind != kind:
        raise ProtocolError(f"it is a {header.kind[:60]}, this run needs a {kind}")
    if header.round != round_number:
        raise ProtocolError(
            f"it was computed for round {header.round}, this is round {round_number}"
        )


def read_client_metrics(metrics: MetricRecord) -> dict[str, float]:
    """Return the figures that a client sent beside its arrays.

    Raises:
        ProtocolError: a figure is no number, not finite, or below zero.
    """
    loss = metrics.get("train_loss")
    if isinstance(loss, float) and not math.isfinite(loss):
        raise ProtocolError(
            f"its train_loss must be a finite number, it says {loss}: lower the "
            f"learning rate"
        )
    numbers = {n: finite_number(n, metrics[n]) for n in CLIENT_METRICS if n in metrics}
    if negative := [name for name, value in numbers.items() if value < 0]:
        raise ProtocolError(f"its {negative[0]} is below zero")
    if ("exposures_max" in numbers) != ("exposures_mean" in numbers):
        raise ProtocolError("it counts exposures by half")
    return numbers


def _check_values(name: str, array: Tensor) -> None:
    if is_bounded(array):
        return
    if not is_bounded(array, math.inf):
        raise ProtocolError(
            f"its array {name} has values that are not finite: lower the learning rate"
        )
    raise ProtocolError(
        f"its array {name} has values beyond {MAX_UPDATE_VALUE:g}: "
        f"lower the learning rate"
    )


def _check_norm(tensors: Mapping[str, Tensor], largest: float) -> None:
    norm = l2_norm(tensors)
    if not norm <= largest:  # nor if it is not a number
        raise ProtocolError(
            f"it has a norm of {norm:.3g}, beyond server.max-update-norm = {largest:g}"
        )


MAX_REASON_LENGTH = 1000  # characters of what a client says about its failure


def failure_reason(message: Message) -> str:
    """Return why a client failed, in one line, without Flower's and Ray's wrapping."""
    wrapped_reason = message.error.reason or f"error code {message.error.code}"
    reason = re.sub(r"^<class '[\w.]+'>:<'", "", wrapped_reason)
    messages = re.findall(r"ClientAppException occurred\. Message: ([^\n]*)", reason)
    line = (
        messages[-1] if messages else (reason.strip() or "no reason").splitlines()[-1]
    )
    # A deployed client's reason begins with the error's class.
    line = re.sub(r"^<class '[\w.]+'>:<['\"]", "", str(line))
    # A client chooses these characters, and an operator's terminal would obey some.
    return printable(line.removesuffix("'>").strip()[:MAX_REASON_LENGTH])
