"""Engine `ray`: the same apps as on Flower, on Ray actors that live as long as the run.

What it avoids, compared with Flower's own simulation: a message and a copy of the model
for every client in both directions, polling, and building data, pool and network again
in every call. The server's parameters go into Ray's object store once a round; each
worker runs its list of clients and sends back sums of their updates. Test images are
evaluated on the workers too, in batches.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from uuid import uuid4

import ray
from flwr.app import Error, Message, MessageType, RecordDict
from torch import Tensor

from instahide_fl.aggregation.reduction import (
    ReadsUpdates,
    ReducedUpdates,
    TreeSum,
)
from instahide_fl.config import Config
from instahide_fl.data.federated_data import load_federated_data
from instahide_fl.engine.logs import logging_to
from instahide_fl.engine.ray.calls import (
    Assignment,
    BatchAssignment,
    CallResult,
    EvaluationInstruction,
    Fingerprint,
    Instruction,
    PackedContent,
    read_sum,
    to_numpy,
)
from instahide_fl.engine.ray.cluster import ray_cluster
from instahide_fl.engine.ray.scheduling import (
    ClientCosts,
    divide,
    evaluation_calls,
)
from instahide_fl.engine.ray.worker_pool import Job, WorkerPool
from instahide_fl.errors import EngineError
from instahide_fl.evaluation.batches import Batch
from instahide_fl.evaluation.clean import BatchFigures
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.in_process_grid import (
    FIRST_CLIENT_NODE_ID,
    SimulationGrid,
    become_server,
    name_message,
    server_context,
)
from instahide_fl.run_folder import LOGS, RunFolder

QUERY_SECONDS = 600.0  # for a client to answer anything but a round's instruction
PULL_SECONDS = 0.05  # that a pull waits for replies before it returns none


def run_ray(config: Config, folder: RunFolder) -> None:
    """Run the experiment to its end.

    Args:
        config: The run's settings.
        folder: A run folder that is ready to be written.

    Raises:
        InstaHideError: The run failed; the folder notes why.
    """
    run_config = config.to_run_config()
    logs = folder.path / LOGS
    with (
        importable_app() as (_, server),
        logging_to(logs / "run.log"),
        ray_cluster(config.resources, logs),
        RayGrid(config) as grid,
    ):
        server.app(grid, server_context(run_config))


class RayGrid(SimulationGrid):
    """Runs messages on Ray workers, in parallel.

    Ray must be connected. As long as a client's state is small, it travels with the
    messages, so any worker can run any client.

    Args:
        config: The run's settings.

    Raises:
        ConfigError: The cluster cannot hold the workers asked for.
        EngineError: Workers do not start, or have other code or data than the server.
    """

    def __init__(self, config: Config) -> None:
        become_server()
        data = load_federated_data(config)
        count = config.partition.num_clients
        self._node_ids = [FIRST_CLIENT_NODE_ID + i for i in range(count)]
        cohort = config.train.clients_per_round or count
        self._pool = WorkerPool(
            config.resources, config.to_run_config(), Fingerprint.here(data), cohort
        )
        self.side_by_side = self._pool.size
        self._timeout = config.train.timeout
        self._costs = ClientCosts()
        self._states: dict[int, RecordDict] = {}
        self._sent: dict[str, Message] = {}
        self._replies: dict[str, Message] = {}

    def __enter__(self) -> RayGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the workers; those with the same content go together."""
        groups: dict[tuple[int, str, str], list[Message]] = {}
        for message in messages:
            self._sent[name_message(message)] = message
            metadata = message.metadata
            key = (id(message.content), metadata.message_type, metadata.group_id)
            groups.setdefault(key, []).append(message)
        for (_, kind, group_id), group in groups.items():
            seconds = self._timeout if kind == MessageType.TRAIN else QUERY_SECONDS
            job = self._job(group[0].content, kind, group_id, None, seconds)
            headers = [message.metadata for message in group]
            assignments = [
                self._assignment(header.dst_node_id, position, header.message_id)
                for position, header in enumerate(headers)
            ]
            self._submit(job, assignments, [1.0] * len(assignments))
        return [
            message.metadata.message_id
            for group in groups.values()
            for message in group
        ]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, after waiting a moment for some."""
        requested = list(message_ids)
        results = self._pool.advance(PULL_SECONDS)
        while results:
            for _, result in results:
                self._take_replies(result)
            results = self._pool.advance(0)
        return [self._replies.pop(i) for i in requested if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull until all replies are there or time is up."""
        deadline = time.monotonic() + (QUERY_SECONDS if timeout is None else timeout)
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and time.monotonic() < deadline:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def send_and_reduce(
        self,
        content: RecordDict,
        node_ids: Sequence[int],
        group_id: str,
        reader: ReadsUpdates,
        sizes: Sequence[int],
        timeout: float,
    ) -> ReducedUpdates:
        """Train one round; see `aggregation.reduction.ReducingGrid`."""
        job = self._job(content, MessageType.TRAIN, group_id, reader, timeout)
        assignments = [
            self._assignment(node, i, str(uuid4())) for i, node in enumerate(node_ids)
        ]
        self._submit(job, assignments, [self._costs.predict(size) for size in sizes])
        reduced = ReducedUpdates(None, {}, {}, 0.0, 0.0)
        tree = TreeSum()
        while len(reduced.contributions) + len(reduced.failures) < len(node_ids):
            for answered_job, result in self._pool.advance(timeout):
                if answered_job is not job:
                    continue  # of a round that was given up
                start = time.perf_counter()
                for node, arrays, scale, weight in result.sums:
                    tree.put(node, read_sum(arrays, scale, weight))
                self._states |= result.states
                reduced.contributions |= result.contributions
                reduced.failures |= result.failures
                reduced.compute_seconds = max(reduced.compute_seconds, result.seconds)
                reduced.adding_seconds += time.perf_counter() - start
        start = time.perf_counter()
        reduced.total = tree.total()
        reduced.adding_seconds += time.perf_counter() - start
        self._learn_costs(dict(zip(node_ids, sizes, strict=True)), reduced)
        return reduced

    def evaluate_batches(
        self, arrays: Mapping[str, Tensor], round_number: int, batches: Sequence[Batch]
    ) -> list[BatchFigures]:
        """Evaluate global arrays on all workers; see `EvaluatesBatches`.

        Raises:
            EngineError: A batch takes too long, or workers die of it.
        """
        stored = ray.put(to_numpy(arrays))
        job = Job(stored, EvaluationInstruction(round_number), self._timeout)
        turns = [BatchAssignment(i, batch) for i, batch in enumerate(batches)]
        for positions in evaluation_calls(len(turns), self._pool.size):
            self._pool.submit(job, [turns[i] for i in positions])
        evaluated: dict[int, BatchFigures] = {}
        while len(evaluated) < len(batches):
            for answered_job, result in self._pool.advance(self._timeout):
                if answered_job is not job:
                    continue  # of a round that was given up
                evaluated |= result.evaluated
                for position, reason in result.failures.items():
                    raise EngineError(
                        f"round {round_number}: the evaluation of {turns[position]} "
                        f"failed: {reason}"
                    )
        return [evaluated[turn.key] for turn in turns]

    def _job(
        self,
        content: RecordDict,
        message_type: str,
        group_id: str,
        reader: ReadsUpdates | None,
        timeout: float,
    ) -> Job:
        stored = ray.put(PackedContent.of(content))
        return Job(stored, Instruction(message_type, group_id, reader), timeout)

    def _assignment(self, node_id: int, position: int, message_id: str) -> Assignment:
        state = self._states.get(node_id)
        return Assignment(node_id, position, message_id, state)

    def _submit(
        self, job: Job, assignments: Sequence[Assignment], costs: Sequence[float]
    ) -> None:
        for positions in divide(costs, self._pool.size):
            self._pool.submit(job, [assignments[i] for i in positions])

    def _take_replies(self, result: CallResult) -> None:
        self._states |= result.states
        for message_id, packed in result.replies.items():
            message = self._sent[message_id]
            if isinstance(packed, PackedContent):
                reply = Message(packed.unpack(), reply_to=message)
            else:
                reply = Message(Error(*packed), reply_to=message)
            self._store_reply(message, reply)
        lost = [
            (message, result.failures[message.metadata.dst_node_id])
            for message in self._sent.values()
            if message.metadata.dst_node_id in result.failures
        ]
        for message, reason in lost:
            self._store_reply(message, Message(Error(0, reason), reply_to=message))

    def _store_reply(self, message: Message, reply: Message) -> None:
        name_message(reply)
        message_id = message.metadata.message_id
        del self._sent[message_id]
        self._replies[message_id] = reply

    def _learn_costs(self, sizes: Mapping[int, int], reduced: ReducedUpdates) -> None:
        self._costs.forget()
        for node, contribution in reduced.contributions.items():
            seconds = contribution.metrics.get("seconds", 0.0)
            self._costs.observe(sizes[node], seconds)
