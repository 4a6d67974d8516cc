"""The Ray engine's workers, managed by the server: who is busy, who died, who hangs."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import ray
from ray.exceptions import (
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from instahide_fl.config import ResourcesConfig
from instahide_fl.engine.ray.calls import (
    Assignment,
    BatchAssignment,
    CallResult,
    EvaluationInstruction,
    Fingerprint,
    Instruction,
)
from instahide_fl.engine.ray.worker import ClientWorker
from instahide_fl.errors import ConfigError, EngineError, InstaHideError
from instahide_fl.flower.in_process_grid import RunConfig

START_SECONDS = 300.0  # for the first workers to be there
ANSWER_SECONDS = 5.0  # for a worker to say whose turn it is
LOOK_SECONDS = 1.0  # between two looks for workers that hang
MAX_ATTEMPTS = 2  # of a client or batch whose worker dies
MAX_FAILED_STARTS = 3  # in a row, before the run is given up

Turn: TypeAlias = Assignment | BatchAssignment

log = logging.getLogger("instahide_fl.engine")


@dataclass(frozen=True)
class Job:
    """One request to many clients, or one evaluation.

    Attributes:
        content: The message's records (`PackedContent`), or the arrays to evaluate, in
            Ray's object store.
        instruction: The other parts that the calls share.
        timeout: The seconds that a client or batch may take.
    """

    content: ray.ObjectRef[Any]
    instruction: Instruction | EvaluationInstruction
    timeout: float


@dataclass
class _Worker:
    """An actor and what it is doing."""

    actor: Any
    number: int


@dataclass
class _Call:
    """A list of clients or batches on a worker."""

    worker: _Worker
    job: Job
    assignments: Sequence[Turn]
    started: float = field(default_factory=time.monotonic)


class WorkerPool:
    """Runs clients on a fixed number of workers, and replaces workers that fail.

    A worker that dies is replaced and its clients run again, each in a call of its own:
    their results are determined by their streams, so a second run is the same. A client
    under which a worker dies twice has failed; so has one that takes longer than the
    job's timeout, and its worker is replaced. All this holds for batches of an
    evaluation too.

    Args:
        resources: The `[resources]` table.
        run_config: The run's settings.
        expected: The server's fingerprint, which every worker must have.
        max_workers: The number of workers that can be of use.

    Raises:
        ConfigError: The cluster cannot hold the workers asked for.
        EngineError: The workers do not start, or work with other code or data.
    """

    def __init__(
        self,
        resources: ResourcesConfig,
        run_config: RunConfig,
        expected: Fingerprint,
        max_workers: int,
    ) -> None:
        self._expected = expected
        self._run_config = ray.put(dict(run_config))
        actor_class: Any = ray.remote(concurrency_groups={"watch": 1})(  # type: ignore[call-overload]
            ClientWorker
        )
        self._actor_class = actor_class.options(
            num_cpus=resources.cpus_per_client,
            num_gpus=resources.gpus_per_client,
            scheduling_strategy="SPREAD",
        )
        self._idle: deque[_Worker] = deque()
        self._queue: deque[tuple[Job, Sequence[Turn]]] = deque()
        self._running: dict[ray.ObjectRef[CallResult], _Call] = {}
        self._starting: dict[ray.ObjectRef[Fingerprint | str], _Worker] = {}
        self._failed_starts = 0
        self._looked_at = time.monotonic()
        self.size = worker_count(resources, max_workers)
        for number in range(self.size):
            self._start(number)
        self._await_start()

    def submit(self, job: Job, assignments: Sequence[Turn]) -> None:
        """Queue a list of clients or batches for the next worker that is free."""
        if assignments:
            self._queue.append((job, assignments))

    def advance(self, timeout: float) -> list[tuple[Job, CallResult]]:
        """Wait until calls end, or time is up, and return the results of calls.

        Args:
            timeout: The seconds to wait at most.

        Raises:
            EngineError: Workers keep dying before they start.
        """
        self._dispatch()
        events = [*self._running, *self._starting]
        if not events:
            return []
        ready, _ = ray.wait(events, timeout=min(timeout, LOOK_SECONDS))
        if ready:
            # Take all that are ready by now, so that a burst is one step.
            ready, _ = ray.wait(events, num_returns=len(events), timeout=0)
        results: list[tuple[Job, CallResult]] = []
        for event in ready:
            if event in self._starting:
                self._take_started(event)
            else:
                results += self._take_finished(event)
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            results += self._end_hanging()
            self._looked_at = time.monotonic()
        self._dispatch()
        return results

    def close(self) -> None:
        """End the workers."""
        busy = [call.worker for call in self._running.values()]
        for worker in [*self._idle, *busy, *self._starting.values()]:
            ray.kill(worker.actor)

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            job, assignments = self._queue.popleft()
            worker = self._idle.popleft()
            is_evaluation = isinstance(job.instruction, EvaluationInstruction)
            method = worker.actor.evaluate if is_evaluation else worker.actor.run
            call = method.remote(job.content, job.instruction, assignments)
            self._running[call] = _Call(worker, job, assignments)

    def _take_finished(
        self, event: ray.ObjectRef[CallResult]
    ) -> list[tuple[Job, CallResult]]:
        call = self._running.pop(event)
        try:
            result = ray.get(event)
        except RayTaskError as error:
            if isinstance(error.cause, InstaHideError):
                raise error.cause from None
            raise EngineError(f"a worker failed: {_cause(error)}") from error
        except RayError as error:
            reason = _death_reason(error)
            log.warning("worker %d died: %s", call.worker.number, reason)
            self._start(call.worker.number)
            return self._retry(call, reason)
        self._idle.append(call.worker)
        return [(call.job, result)]

    def _retry(self, call: _Call, reason: str) -> list[tuple[Job, CallResult]]:
        """Queue a dead worker's turns again, or fail those without an attempt left.

        Each gets a call of its own, because one of them may have killed the worker.
        """
        failures = {}
        for assignment in call.assignments:
            if assignment.attempt >= MAX_ATTEMPTS:
                failures[assignment.key] = reason
                continue
            next_attempt = replace(assignment, attempt=assignment.attempt + 1)
            self._queue.append((call.job, [next_attempt]))
        return [(call.job, CallResult(failures=failures))] if failures else []

    def _end_hanging(self) -> list[tuple[Job, CallResult]]:
        """Replace workers whose client has taken longer than the job's timeout."""
        results: list[tuple[Job, CallResult]] = []
        now = time.monotonic()
        for event, call in list(self._running.items()):
            if now - call.started < call.job.timeout:
                continue
            silent, culprit = False, -1
            try:
                turn = ray.get(call.worker.actor.turn.remote(), timeout=ANSWER_SECONDS)
                if turn is None or turn[1] < call.job.timeout:
                    continue
                culprit = turn[0]
            except GetTimeoutError:
                silent = True
            except RayError:
                continue  # dead, which ray.wait will report
            ready, _ = ray.wait([event], timeout=0)
            if ready:
                continue
            del self._running[event]
            ray.kill(call.worker.actor)
            self._start(call.worker.number)
            seconds = f"{call.job.timeout:g} s (train.timeout)"
            if silent:
                results += self._retry(
                    call, f"its worker did not respond for {seconds}"
                )
                continue
            hanging = [turn for turn in call.assignments if turn.key == culprit]
            log.warning("%s hangs: its worker is replaced", *hanging)
            rest = [turn for turn in call.assignments if turn.key != culprit]
            self.submit(call.job, rest)
            failures = {culprit: f"no answer within {seconds}"}
            results.append((call.job, CallResult(failures=failures)))
        return results

    def _start(self, number: int) -> None:
        actor = self._actor_class.remote(self._run_config, os.getcwd())
        self._starting[actor.load.remote()] = _Worker(actor, number)

    def _take_started(self, event: ray.ObjectRef[Fingerprint | str]) -> None:
        worker = self._starting.pop(event)
        try:
            fingerprint = ray.get(event)
        except RayError as error:
            self._failed_starts += 1
            reason = start_failure(error)
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise EngineError(f"workers cannot be started: {reason}") from error
            log.warning("worker %d died while starting: %s", worker.number, reason)
            self._start(worker.number)
            return
        self._failed_starts = 0
        if isinstance(fingerprint, str):
            raise EngineError(f"a worker cannot load its data: {fingerprint}")
        _check_fingerprint(fingerprint, self._expected)
        self._idle.append(worker)

    def _await_start(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self._starting:
            ready, _ = ray.wait(list(self._starting), timeout=1.0)
            for event in ready:
                self._take_started(event)
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{len(self._starting)} of {self.size} workers did not start "
                    f"within {START_SECONDS:g} s: is the Ray cluster busy with other "
                    f"work? Set resources.workers to fewer"
                )


def worker_count(resources: ResourcesConfig, max_workers: int) -> int:
    """Return how many workers to start in the cluster that Ray is connected to.

    Args:
        resources: The `[resources]` table.
        max_workers: The number of workers that can be of use.

    Raises:
        ConfigError: The cluster has no room for the workers asked for, or for a single
            one.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    room = sum(_room(node, resources) for node in nodes)
    needed = max(1, resources.workers)
    if room < needed:
        raise ConfigError(
            f"resources.workers = {resources.workers or 'as many as fit'} with "
            f"{resources.cpus_per_client} CPUs (cpus-per-client) and "
            f"{resources.gpus_per_client:g} GPUs (gpus-per-client) each do not fit: "
            f"Ray has room for {room}"
        )
    return min(resources.workers or room, max(1, max_workers))


def _room(node: Mapping[str, float], resources: ResourcesConfig) -> int:
    fits = int(node.get("CPU", 0)) // resources.cpus_per_client
    if resources.gpus_per_client > 0:
        # Ray gives a worker a share of one GPU, or whole ones.
        share, gpus = resources.gpus_per_client, int(node.get("GPU", 0))
        each = gpus * int(1 / share + 1e-9) if share < 1 else int(gpus / share + 1e-9)
        fits = min(fits, each)
    return fits


def _check_fingerprint(worker: Fingerprint, server: Fingerprint) -> None:
    for name, there, here in (
        ("code", worker.code, server.code),
        ("data set", worker.dataset, server.dataset),
        ("pool", worker.pool, server.pool),
    ):
        if there != here:
            raise EngineError(
                f"the worker on {worker.host} has another {name} ({there[:12]}) than "
                f"the server on {server.host} ({here[:12]}): install the same "
                f"version, and copy the same files to the same paths, on every node"
            )


def _death_reason(error: RayError) -> str:
    if isinstance(error, OutOfMemoryError):
        return "its worker ran out of memory"
    first = str(error).strip().splitlines()[0]
    return f"its worker process died ({first.rstrip('.')})"


def start_failure(error: RayError) -> str:
    """Return why a worker did not start, in one line.

    Args:
        error: Ray's error, of an exception in the worker's code or of its death.
    """
    is_init = isinstance(error, RayActorError) and error.actor_init_failed
    if is_init or isinstance(error, RayTaskError):
        return _cause(error)
    return _death_reason(error)


def _cause(error: RayError) -> str:
    """Return the last line of a worker's traceback, which has the reason."""
    last = str(error).strip().splitlines()[-1]
    # Our own errors are sentences, which need no name of a class.
    return re.sub(r"^instahide_fl\.errors\.\w+: ", "", last)
