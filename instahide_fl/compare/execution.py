"""Runs side by side, each in a process of its own."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

from instahide_fl.config import Config
from instahide_fl.errors import ConfigError, InstaHideError
from instahide_fl.interrupts import interrupts_deferred
from instahide_fl.study.plan import PlannedRun

POLL_SECONDS = 0.5
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class EndedRun:
    """A run that was carried out, or failed.

    Attributes:
        run: The run of the study.
        seconds: The time that it took; 0 if it failed.
        failure: The reason why it failed; empty if it did not.
    """

    run: PlannedRun
    seconds: float
    failure: str


def parallel_runs(config: Config, jobs: int) -> int:
    """Return how many runs this machine carries at once.

    Args:
        config: The settings of the runs.
        jobs: The number that the user asks for; 0 takes as many as there are free CPUs,
            or with GPUs as many as fit on one.

    Raises:
        ConfigError: the number is negative.
    """
    if jobs < 0:
        raise ConfigError(f"--jobs must be 0 (as many as fit) or more, got {jobs}")
    if jobs:
        return jobs
    if config.resources.gpus_per_client:
        return max(1, int(1 / config.resources.gpus_per_client))
    usable = len(os.sched_getaffinity(0))
    return max(1, usable // config.resources.cpus_per_client)


class RunProcesses:
    """Processes that carry out runs, one run each at a time.

    A run that kills its process takes no other with it. Leaving the context ends all
    processes at once; a later command continues their runs from the checkpoints.

    Args:
        study: The study's folder.
        count: The number of processes.

    Attributes:
        running: The run of each process that is busy, and its outcome to come, by the
            number of the process.
    """

    def __init__(self, study: Path, count: int) -> None:
        self._study = study
        self._executors = [_process() for _ in range(count)]
        self.running: dict[int, tuple[PlannedRun, Future[float]]] = {}

    def __enter__(self) -> RunProcesses:
        return self

    def __exit__(self, *exception: object) -> None:
        for executor in self._executors:
            _stop(executor)

    def carry_out(self, runs: Sequence[PlannedRun]) -> Iterator[EndedRun | None]:
        """Carry out runs in order; yield each that ends, and None while waiting."""
        waiting = list(runs)
        while waiting or self.running:
            for number in range(len(self._executors)):
                if number not in self.running and waiting:
                    self._start(number, waiting.pop(0))
            ended = [
                number for number, (_, future) in self.running.items() if future.done()
            ]
            for number in ended:
                yield self._end(number)
            if not ended:
                yield None
                time.sleep(POLL_SECONDS)

    def _start(self, number: int, run: PlannedRun) -> None:
        # The run's process imports what performs it: this one needs no PyTorch.
        # It would print a traceback if Ctrl-C came before it ignores that.
        with interrupts_deferred():
            future = self._executors[number].submit(_perform, self._study, run)
        self.running[number] = run, future

    def _end(self, number: int) -> EndedRun:
        run, future = self.running.pop(number)
        try:
            return EndedRun(run, future.result(), "")
        except InstaHideError as error:
            return EndedRun(run, 0.0, str(error))
        except BrokenProcessPool:
            _stop(self._executors[number])
            self._executors[number] = _process()
            return EndedRun(
                run,
                0.0,
                "its process was killed: most often the machine is out of memory "
                "(choose fewer --jobs)",
            )
        except Exception as error:  # a bug of one run must not lose the others
            return EndedRun(run, 0.0, f"{type(error).__name__}: {error}")


def _process() -> ProcessPoolExecutor:
    # One worker each: where several share an executor, a killed one breaks them all.
    # Half made, it would leave a semaphore behind.
    with interrupts_deferred():
        context = get_context("spawn")
        return ProcessPoolExecutor(1, context, initializer=_prepare_process)


def _prepare_process() -> None:
    """Leave Ctrl-C to the parent process, end with it, and compute on one thread.

    A process that outlived its parent would still write in a run's folder when the
    study is resumed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in _THREADS:
        os.environ[name] = "1"


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _perform(study: Path, run: PlannedRun) -> float:
    from instahide_fl.compare.run_job import perform

    return perform(study, run)


def _stop(executor: ProcessPoolExecutor) -> None:
    # The executor's own shutdown would wait for the run at hand.
    for process in list((getattr(executor, "_processes", None) or {}).values()):
        process.kill()
    executor.shutdown(wait=True, cancel_futures=True)
