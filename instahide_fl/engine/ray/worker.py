"""The Ray engine's worker: a process that runs clients, one after another.

Between rounds it evaluates batches of test images.

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
from collections.abc import Sequence

import ray
import torch
from flwr.app import Message, RecordDict
from torch import nn

from instahide_fl.aggregation.reduction import (
    Contribution,
    TreeNode,
    TreeSum,
    UpdateSum,
)
from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset
from instahide_fl.data.federated_data import load_federated_data
from instahide_fl.encoding.fused import prepare
from instahide_fl.engine.ray.calls import (
    Arrays,
    Assignment,
    BatchAssignment,
    CallResult,
    EvaluationInstruction,
    Fingerprint,
    Instruction,
    PackedContent,
    readable,
    to_numpy,
)
from instahide_fl.errors import InstaHideError
from instahide_fl.evaluation.batches import BatchEvaluator
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.arrays import array_records, from_record
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
from instahide_fl.training.allocator import keep_freed_memory
from instahide_fl.training.device import training_device
from instahide_fl.training.local import warm_up


class ClientWorker:
    """Runs clients, and evaluates batches between rounds; a Ray actor.

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
        self._evaluator: BatchEvaluator | None = None  # until the data is loaded
        become_server()

    def load(self) -> Fingerprint | str:
        """Load what all clients need; a string says why that is not possible."""
        torch.set_num_threads(1)
        keep_freed_memory()
        try:
            data = load_federated_data(self._config)
            fingerprint = Fingerprint.here(data)
            model = self._warmed_up_model(data.dataset)
            self._evaluator = BatchEvaluator(
                model, data.dataset, self._config, data.pool
            )
            # What is loaded by now stays: the garbage collector need not visit it.
            gc.freeze()
            return fingerprint
        except InstaHideError as error:
            return f"{socket.gethostname()}: {error}"

    def _warmed_up_model(self, dataset: ImageDataset) -> nn.Module:
        """Do what is slow the first time, before the time of a client is measured.

        Returns:
            A network of the run's shape; its parameters have moved.
        """
        config, shape = self._config, dataset.image_shape
        classes = dataset.train.num_classes
        model = build_model(config.network, shape, classes, config.seed)
        warm_up(model.to(self._device), shape, config.train)
        if config.instahide.method != "none":
            prepare()
        # Gradients of the warm-up, which an evaluation has no use for.
        model.zero_grad()
        return model

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
            (node, to_numpy(part.arrays), part.scale, part.weight)
            for node, part in tree.nodes.items()
        ]
        result.seconds = time.perf_counter() - start
        return result

    def evaluate(
        self,
        arrays: Arrays,
        instruction: EvaluationInstruction,
        assignments: Sequence[BatchAssignment],
    ) -> CallResult:
        """Evaluate the global arrays on batches."""
        assert self._evaluator is not None
        torch.set_num_threads(1)  # where no client has run in this process yet
        start = time.perf_counter()
        self._evaluator.load({name: readable(a) for name, a in arrays.items()})
        result = CallResult()
        for assignment in assignments:
            self._turn = (assignment.key, time.monotonic())
            figures = self._evaluator.evaluate(assignment.batch, instruction.round)
            result.evaluated[assignment.key] = figures
        self._turn = None
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


def _memory(content: RecordDict) -> set[int]:
    """Return the addresses of the memory that the tensors of a message share."""
    return {
        tensor.untyped_storage().data_ptr()
        for record in array_records(content).values()
        for tensor in from_record(record).values()
    }
