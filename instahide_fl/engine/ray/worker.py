"""The Ray engine's worker: a process that runs clients, one after another.

It lives as long as the run. The ClientApp, the data set, the pool and the network are
loaded once and shared by all clients that it runs; a client's state comes with each
call and goes back with its result.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.aggregation.reduction import (
    Contribution,
    ReadsUpdates,
    TreeNode,
    TreeSum,
    UpdateSum,
)
from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset
from instahide_fl.data.federated_data import FederatedData, load_federated_data
from instahide_fl.encoding.fused import prepare
from instahide_fl.errors import InstaHideError
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.arrays import array_records, from_record, to_record
from instahide_fl.flower.in_process_grid import (
    FIRST_CLIENT_NODE_ID,
    RunConfig,
    become_server,
    client_context,
    copied_records,
    name_message,
    run_client,
    simulated_nodes,
)
from instahide_fl.models.registry import build_model
from instahide_fl.provenance import imported_code_hash
from instahide_fl.training.allocator import keep_freed_memory
from instahide_fl.training.device import training_device
from instahide_fl.training.local import warm_up

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
            name: _to_numpy(from_record(record))
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


@dataclass
class CallResult:
    """The result of a call, for all its clients.

    Attributes:
        seconds: The time that the call took on the worker.
        sums: The sums of the valid updates: subtree, arrays, scale and weight.
        contributions: The descriptions of the valid updates, by node id.
        failures: The reasons of failures, by node id.
        replies: The replies by message id, where no reader was given: content, or an
            error's code and reason.
        states: The new states by node id, of clients that have one.
    """

    seconds: float = 0.0
    sums: list[tuple[TreeNode, Arrays, float, float]] = field(default_factory=list)
    contributions: dict[int, Contribution] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    replies: dict[str, PackedContent | tuple[int, str]] = field(default_factory=dict)
    states: dict[int, RecordDict] = field(default_factory=dict)


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


class ClientWorker:
    """Runs clients; a Ray actor.

    Args:
        run_config: The run's settings.
        folder: The server's working folder, which settings and environment variables
            may be relative to; one that this machine lacks is passed over.
    """

    def __init__(self, run_config: RunConfig, folder: str) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._run_config = run_config
        self._config = Config.from_run_config(run_config)
        self._nodes = simulated_nodes(self._config.partition.num_clients)
        # Never left, because the process belongs to the run, and messages that are
        # unpickled here name classes of the apps.
        clients, _ = contextlib.ExitStack().enter_context(importable_app())
        self._client_app = clients.app
        self._device = training_device(self._config.resources)
        self._turn: tuple[int, float] | None = None
        become_server()

    def load(self) -> Fingerprint | str:
        """Load what all clients need; a string says why that is not possible."""
        torch.set_num_threads(1)
        keep_freed_memory()
        try:
            data = load_federated_data(self._config)
            fingerprint = Fingerprint.here(data)
            self._warm_up(data.dataset)
            # What is loaded by now stays: the garbage collector need not visit it.
            gc.freeze()
            return fingerprint
        except InstaHideError as error:
            return f"{socket.gethostname()}: {error}"

    def _warm_up(self, dataset: ImageDataset) -> None:
        """Do what is slow the first time, before the time of a client is measured."""
        config, shape = self._config, dataset.image_shape
        classes = dataset.train.num_classes
        model = build_model(config.network, shape, classes, config.seed)
        warm_up(model.to(self._device), shape, config.train)
        if config.instahide.method != "none":
            prepare()

    def run(
        self,
        content: PackedContent,
        instruction: Instruction,
        assignments: Sequence[Assignment],
    ) -> CallResult:
        """Run clients in order and add up their updates, or collect their replies."""
        start = time.perf_counter()
        received = content.unpack(self._device)
        result, tree = self._run_all(received, instruction, assignments, False)
        if not all(part.is_bounded() for part in tree.nodes.values()):
            # Rare, so only this case pays for checking every single update.
            del result, tree
            result, tree = self._run_all(received, instruction, assignments, True)
        self._turn = None
        result.sums = [
            (node, _to_numpy(part.arrays), part.scale, part.weight)
            for node, part in tree.nodes.items()
        ]
        result.seconds = time.perf_counter() - start
        return result

    @ray.method(concurrency_group="watch")
    def turn(self) -> tuple[int, float] | None:
        """Return whose turn it is, and for how many seconds; None between calls."""
        if (turn := self._turn) is None:
            return None
        return turn[0], time.monotonic() - turn[1]

    def _run_all(
        self,
        received: RecordDict,
        instruction: Instruction,
        assignments: Sequence[Assignment],
        check_each: bool,
    ) -> tuple[CallResult, TreeSum]:
        result, tree = CallResult(), TreeSum()
        shared = _memory(received)
        for assignment in assignments:
            self._turn = (assignment.node_id, time.monotonic())
            # In a call of its own, so that its memory is free for the next client.
            leaf = self._run_assignment(
                received=received,
                shared=shared,
                instruction=instruction,
                assignment=assignment,
                result=result,
                check_finite=check_each,
            )
            if leaf is not None:
                tree.put(TreeNode(0, assignment.position), leaf)
        return result, tree

    def _run_assignment(
        self,
        received: RecordDict,
        shared: set[int],
        instruction: Instruction,
        assignment: Assignment,
        result: CallResult,
        check_finite: bool,
    ) -> UpdateSum | None:
        reply = self._run_client(received, instruction, assignment, result.states)
        node_id, reader = assignment.node_id, instruction.reader
        if reader is None:
            result.replies[assignment.message_id] = _pack_reply(reply)
            return None
        try:
            update = reader.read(reply, check_finite)
        except InstaHideError as error:
            result.failures[node_id] = str(error)
            return None
        result.contributions[node_id] = Contribution.of(update)
        # The sum may write to the arrays of a client that has no state and sent none of
        # the arrays that it received: nobody else holds them.
        in_use = node_id in result.states or bool(shared & _memory(reply.content))
        return UpdateSum.of(update, reader.weight(update), owned=not in_use)

    def _run_client(
        self,
        content: RecordDict,
        instruction: Instruction,
        assignment: Assignment,
        states: dict[int, RecordDict],
    ) -> Message:
        node_id = assignment.node_id
        message = Message(
            content,
            node_id,
            instruction.message_type,
            group_id=instruction.group_id,
        )
        name_message(message, assignment.message_id)
        node = self._nodes[node_id - FIRST_CLIENT_NODE_ID]
        # A copy: the client may have to run again, from the same state.
        state = copied_records(assignment.state or RecordDict())
        context = client_context(node_id, node, state, self._run_config)
        reply = run_client(self._client_app, message, context)
        if len(context.state):
            states[node_id] = context.state
        return reply


def _pack_reply(reply: Message) -> PackedContent | tuple[int, str]:
    if reply.has_error():
        return reply.error.code, reply.error.reason or ""
    return PackedContent.of(reply.content)


def read_sum(arrays: Arrays, scale: float, weight: float) -> UpdateSum:
    """Return a worker's partial sum without copying it out of Ray's memory.

    Args:
        arrays: The arrays by parameter name.
        scale: The factor that the arrays are still to be multiplied with.
        weight: The sum of the updates' weights.
    """
    tensors = {name: _readable(array) for name, array in arrays.items()}
    return UpdateSum(tensors, scale, weight)


def _readable(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        # torch warns of memory that must not be written to; sums marked as not owned
        # never are.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _to_numpy(tensors: Mapping[str, Tensor]) -> Arrays:
    # Contiguous, or Ray would copy them once more.
    return {n: tensor.cpu().contiguous().numpy() for n, tensor in tensors.items()}


def _memory(content: RecordDict) -> set[int]:
    """Return the addresses of the memory that the tensors of a message share."""
    return {
        tensor.untyped_storage().data_ptr()
        for record in array_records(content).values()
        for tensor in from_record(record).values()
    }
