"""Ctrl-C and SIGTERM: exceptions that lead out of a command, wherever it is."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

AGAIN_SECONDS = 0.1  # until an interrupt that could not be raised is sent again
MAX_IMPORT_SECONDS = 2.0  # that an interrupt waits for imports

# What the signal module takes and returns: signal.Handlers, a function, or None.
Handler = Any


class Terminated(KeyboardInterrupt):
    """SIGTERM has come, which asks for the same clean-up as Ctrl-C."""


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGINT and SIGTERM by an exception.

    Raises:
        Terminated: The signal is SIGTERM.
        KeyboardInterrupt: The signal is another.
    """
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def signals_handled(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    """Install a signal handler for the block; do nothing outside the main thread.

    Args:
        handler: The handler, as `signal.signal` takes it.
        numbers: The signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM to the end of the block.

    Processes that are started in it ignore the Ctrl-C of a terminal, which reaches all
    of them: their parent ends them.
    """
    caught: list[int] = []
    deferred = signals_handled(
        lambda number, frame: caught.append(number), signal.SIGINT, signal.SIGTERM
    )
    with deferred:
        # Unlike a handler, the mask outlasts the start of another program.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number in caught:
        signal.raise_signal(number)


def is_ignored(number: signal.Signals) -> bool:
    """Tell whether a signal does nothing, as Ctrl-C to what a shell runs behind it."""
    return signal.getsignal(number) is signal.SIG_IGN


class InterruptWatch:
    """Raises Ctrl-C where it can be raised, and notes that it came.

    It waits while modules are imported, seconds at most: C code that imports others
    may swallow it and go on without them. In a destructor or a callback of C code an
    exception is printed and lost: there it is raised again. Libraries may turn it into
    another error: `interrupted` tells.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._first = 0.0  # on the monotonic clock, of an interrupt that waits
        self._number = 0  # of signals; a repetition of one before the last is dropped

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT."""
        now = time.monotonic()
        self.interrupted = True
        self._number += 1
        self._first = self._first or now
        if _is_importing(frame) and now - self._first < MAX_IMPORT_SECONDS:
            self._repeat()
            return
        self._first = 0.0
        interrupt(number, frame)

    def _repeat(self) -> None:
        """Send SIGINT again in a moment, unless another comes before."""
        again = threading.Timer(AGAIN_SECONDS, self._send, (self._number,))
        again.daemon = True
        again.start()

    def _send(self, number: int) -> None:
        if number == self._number:
            os.kill(os.getpid(), signal.SIGINT)

    def handle_unraisable(self, unraisable: Any) -> None:
        """Handle an exception that cannot be raised; see `sys.unraisablehook`."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._repeat()
        else:
            sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def watched_interrupts() -> Iterator[InterruptWatch]:
    """Handle Ctrl-C by a watch in the block.

    A process that was started with Ctrl-C ignored goes on ignoring it.
    """
    watch = InterruptWatch()
    if is_ignored(signal.SIGINT):
        yield watch
        return
    hook, sys.unraisablehook = sys.unraisablehook, watch.handle_unraisable
    try:
        with signals_handled(watch.handle, signal.SIGINT):
            yield watch
    finally:
        sys.unraisablehook = hook


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False
