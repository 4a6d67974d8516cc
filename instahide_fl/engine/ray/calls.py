"""What passes between the server and the Ray engine's workers: calls and results."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.aggregation.reduction import (
    Contribution,
    ReadsUpdates,
    TreeNode,
    UpdateSum,
)
from instahide_fl.data.federated_data import FederatedData
from instahide_fl.evaluation.batches import Batch
from instahide_fl.evaluation.clean import BatchFigures
from instahide_fl.flower.arrays import array_records, from_record, to_record
from instahide_fl.provenance import imported_code_hash

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PackedContent:
    """A message's records, with arrays that Ray maps into memory instead of copying.

    Attributes:
        arrays: The array records by name.
        others: The config and metric records by name.
    """

    arrays: dict[str, Arrays]
    others: dict[str, ConfigRecord | MetricRecord]

    @classmethod
    def of(cls, content: RecordDict) -> PackedContent:
        """Take records apart."""
        arrays = {
            name: to_numpy(from_record(record))
            for name, record in array_records(content).items()
        }
        others = {n: r for n, r in content.items() if not isinstance(r, ArrayRecord)}
        return cls(arrays, others)

    def unpack(self, device: str = "cpu") -> RecordDict:
        """Put records together again, copied to the memory of a device."""
        records: dict[str, Any] = dict(self.others)
        for name, arrays in self.arrays.items():
            # Copied, because Ray's memory cannot be written to.
            copies = {key: torch.from_numpy(np.array(a)) for key, a in arrays.items()}
            records[name] = to_record({key: a.to(device) for key, a in copies.items()})
        return RecordDict(records)


@dataclass(frozen=True)
class Instruction:
    """The parts that all messages of one call share.

    Attributes:
        message_type: Flower's type of the messages.
        group_id: Flower's group of the messages: the round.
        reader: The check of the updates, which are then added up; None sends the
            replies back as they are.
    """

    message_type: str
    group_id: str
    reader: ReadsUpdates | None


@dataclass(frozen=True)
class EvaluationInstruction:
    """The part that all calls of one evaluation share.

    Attributes:
        round: The round after which the arrays are evaluated.
    """

    round: int


@dataclass(frozen=True)
class Assignment:
    """One client's turn.

    Attributes:
        node_id: The client's node id.
        position: The client's position in the cohort.
        message_id: The id of the message that the client receives.
        state: The client's state from earlier rounds (`Context.state`); None for none.
        attempt: The number of the attempt, from 1; a worker that dies costs one.
    """

    node_id: int
    position: int
    message_id: str
    state: RecordDict | None = None
    attempt: int = 1

    @property
    def key(self) -> int:
        """The number that tells a job's turns apart: the node id."""
        return self.node_id

    def __str__(self) -> str:
        return f"client node {self.node_id}"


@dataclass(frozen=True)
class BatchAssignment:
    """One batch's turn in an evaluation.

    Attributes:
        key: The batch's position in the evaluation, which tells a job's turns apart.
        batch: The batch.
        attempt: The number of the attempt, from 1; a worker that dies costs one.
    """

    key: int
    batch: Batch
    attempt: int = 1

    def __str__(self) -> str:
        return f"batch {self.batch.number} of the {self.batch.part} images"


@dataclass
class CallResult:
    """The result of a call, for all its clients or batches.

    Attributes:
        seconds: The time that the call took on the worker.
        sums: The sums of the valid updates: subtree, arrays, scale and weight.
        contributions: The descriptions of the valid updates, by node id.
        failures: The reasons of failures, by node id, or by position of a batch.
        replies: The replies by message id, where no reader was given: content, or an
            error's code and reason.
        states: The new states by node id, of clients that have one.
        evaluated: The figures of batches, by position in the evaluation.
    """

    seconds: float = 0.0
    sums: list[tuple[TreeNode, Arrays, float, float]] = field(default_factory=list)
    contributions: dict[int, Contribution] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    replies: dict[str, PackedContent | tuple[int, str]] = field(default_factory=dict)
    states: dict[int, RecordDict] = field(default_factory=dict)
    evaluated: dict[int, BatchFigures] = field(default_factory=dict)


@dataclass(frozen=True)
class Fingerprint:
    """Digests of a process's code, data set and pool, which must agree everywhere.

    Attributes:
        host: The machine's name.
        code: The hash of the code.
        dataset: The digest of the data set.
        pool: The sha256 of the pool; empty for none.
    """

    host: str
    code: str
    dataset: str
    pool: str

    @classmethod
    def here(cls, data: FederatedData) -> Fingerprint:
        """Return the fingerprint of this process, which has loaded the data."""
        pool = data.pool.sha256 if data.pool else ""
        host = socket.gethostname()
        return cls(host, imported_code_hash(), data.dataset.digest, pool)


def read_sum(arrays: Arrays, scale: float, weight: float) -> UpdateSum:
    """Return a worker's partial sum without copying it out of Ray's memory.

    Args:
        arrays: The arrays by parameter name.
        scale: The factor that the arrays are still to be multiplied with.
        weight: The sum of the updates' weights.
    """
    tensors = {name: readable(array) for name, array in arrays.items()}
    return UpdateSum(tensors, scale, weight)


def readable(array: NDArray[Any]) -> Tensor:
    """Return an array of Ray's memory as a tensor, which must not be written to.

    Args:
        array: The array.
    """
    with warnings.catch_warnings():
        # torch warns of memory that must not be written to; sums marked as not owned
        # never are.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def to_numpy(tensors: Mapping[str, Tensor]) -> Arrays:
    """Return tensors as arrays that Ray maps into memory instead of copying.

    Args:
        tensors: The tensors by name.
    """
    # Contiguous, or Ray would copy them once more.
    return {n: tensor.cpu().contiguous().numpy() for n, tensor in tensors.items()}
