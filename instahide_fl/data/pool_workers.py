"""Worker processes that end with the command that started them, whatever ends it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from instahide_fl.errors import EngineError
from instahide_fl.interrupts import interrupts_deferred, signals_handled
from instahide_fl.private_folder import folder_for_sockets

Result = TypeVar("Result")

_shared_arguments: tuple[Any, ...] = ()  # of a worker process


def run_in_processes(
    function: Callable[..., Result],
    calls: Sequence[tuple[Any, ...]],
    jobs: int,
    shared: tuple[Any, ...] = (),
) -> Generator[Result, None, None]:
    """Call a function in worker processes and yield its results as they come.

    No worker outlives the generator, so close it where it may not be used up.

    Args:
        function: a function of a module, which workers import.
        calls: The arguments of each call.
        jobs: Processes.
        shared: Arguments of all calls, before their own. They are sent to each process
            once, so they may be large.

    Raises:
        EngineError: a worker process died.
        Exception: the function raised it.
    """
    if not calls:
        return
    with _executor(min(jobs, len(calls)), shared) as executor:
        running: set[Future[Result]] = set()
        for arguments in calls:
            # No more in the queue than keeps every process busy.
            if len(running) >= 2 * jobs:
                completed, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in completed)
            # A submit may start a process, which half started nobody would end.
            with interrupts_deferred():
                running.add(executor.submit(_call, function, arguments))
        yield from (future.result() for future in as_completed(running))


@contextlib.contextmanager
def _executor(jobs: int, shared: tuple[Any, ...]) -> Iterator[ProcessPoolExecutor]:
    # Workers are forked from a server and share what it has loaded. None of our own
    # modules: the server may not have this process's module path.
    multiprocessing.set_forkserver_preload(["numpy", "cv2", "PIL.Image"])
    # Ctrl-C in a terminal reaches all processes, but only the command's own answers:
    # the server inherits that it is ignored, and its workers from it.
    with signals_handled(signal.SIG_IGN, signal.SIGINT), _short_socket_paths():
        forkserver.ensure_running()
    context = multiprocessing.get_context("forkserver")
    # Nothing is ever sent: workers end when they reach the end of this pipe.
    receiving, alive = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(jobs, context, _prepare_worker, (receiving, shared))
    try:
        yield executor
        executor.shutdown()
    except BrokenProcessPool:
        raise EngineError(
            "a worker process died, perhaps for want of memory: the same command "
            "continues the build; a smaller --jobs needs less memory"
        ) from None
    finally:
        # Closed first: workers leave at once, not when their call is done.
        alive.close()
        executor.shutdown(cancel_futures=True)
        receiving.close()


@contextlib.contextmanager
def _short_socket_paths() -> Iterator[None]:
    """Let multiprocessing put its socket where the path is not too long for one."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder_for_sockets())
    try:
        yield
    finally:
        tempfile.tempdir = before


def _call(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    return function(*_shared_arguments, *arguments)


def _prepare_worker(parent: Connection, shared: tuple[Any, ...]) -> None:
    """Use one thread, and end with the parent or when it closes its end of the pipe."""
    import cv2

    global _shared_arguments
    _shared_arguments = shared

    cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    try:
        parent.recv()
    except EOFError:
        os._exit(1)
