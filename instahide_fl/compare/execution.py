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
from instahide_fl.study.plan import PlannedRun

POLL_SECONDS = 0.5
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Ended:
    """A run that ended.

    Attributes:
        run: of the study.
        seconds: that it took; 0 if it failed.
        failure: why it failed; empty if it did not.
    """

    run: PlannedRun
    seconds: float
    failure: str


def side_by_side(config: Config, wanted: int) -> int:
    """Return how many runs this machine carries at once.

    Args:
        config: of the runs.
        wanted: as the user says; 0 takes as many as there are free CPUs, or with GPUs
            as many as fit on one.

    Raises:
        ConfigError: the number is negative.
    """
    if wanted < 0:
        raise ConfigError(f"--jobs must be 0 (as many as fit) or more, got {wanted}")
    if wanted:
        return wanted
    if config.resources.gpus_per_client:
        return max(1, int(1 / config.resources.gpus_per_client))
    usable = len(os.sched_getaffinity(0))
    return max(1, usable // config.resources.cpus_per_client)


class Lanes:
    """Processes that carry out runs, one run each at a time.

    A run that kills its process takes no other with it. Leaving the context ends all
    processes at once: what they were at is continued from its checkpoint later.

    Args:
        study: the study's folder.
        count: processes.
    """

    def __init__(self, study: Path, count: int) -> None:
        self._study = study
        self._lanes = [_process() for _ in range(count)]
        self.running: dict[int, tuple[PlannedRun, Future[float]]] = {}

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *ended: object) -> None:
        for lane in self._lanes:
            _stop(lane)

    def carry_out(self, runs: Sequence[PlannedRun]) -> Iterator[Ended | None]:
        """Do runs in their order; yield those that end, and None while waiting."""
        waiting = list(runs)
        while waiting or self.running:
            for number in range(len(self._lanes)):
                if number not in self.running and waiting:
                    self._start(number, waiting.pop(0))
            ended = [n for n, (_, future) in self.running.items() if future.done()]
            for number in ended:
                yield self._end(number)
            if not ended:
                yield None
                time.sleep(POLL_SECONDS)

    def _start(self, number: int, run: PlannedRun) -> None:
        # Imported there: this process needs no PyTorch.
        future = self._lanes[number].submit(_perform, self._study, run)
        self.running[number] = run, future

    def _end(self, number: int) -> Ended:
        run, future = self.running.pop(number)
        try:
            return Ended(run, future.result(), "")
        except InstaHideError as error:
            return Ended(run, 0.0, str(error))
        except BrokenProcessPool:
            _stop(self._lanes[number])
            self._lanes[number] = _process()
            return Ended(
                run,
                0.0,
                "its process was killed: most often the machine is out of memory "
                "(choose fewer --jobs)",
            )
        except Exception as error:  # a bug of one run must not lose the others
            return Ended(run, 0.0, f"{type(error).__name__}: {error}")


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_prepare_process)


def _prepare_process() -> None:
    """Ctrl-C is for the process that started this one; sums stay on one thread.

    If that process is killed, this one ends too: whoever resumes the study must not
    meet it in a run's folder.
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


def _stop(lane: ProcessPoolExecutor) -> None:
    # Its own shutdown would wait for the run at hand.
    for process in list((getattr(lane, "_processes", None) or {}).values()):
        process.kill()
    lane.shutdown(wait=True, cancel_futures=True)
