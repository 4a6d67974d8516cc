"""Child processes that end with this one, whatever happens to it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from instahide_fl import end_orphans
from instahide_fl.environment import SAFE_IMPORTS, proxy_exceptions
from instahide_fl.interrupts import signals_handled

MARK = "INSTAHIDE_FL_LAUNCH"


class OrphanWatch:
    """A process that ends the children of this one if it does not do so itself.

    It outlives a process that is killed. Children are found by a random mark in their
    environment, or by their session.

    Attributes:
        mark: The value of the environment variable `MARK` of processes to end.
    """

    def __init__(self) -> None:
        self.mark = secrets.token_hex(16)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", end_orphans.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            # Ctrl-C in a terminal must not end it before this process.
            start_new_session=True,
        )
        self._tell(f"mark {MARK}={self.mark}")

    def add_session(self, number: int) -> None:
        """Let the processes of a session end, too."""
        self._tell(f"session {number}")

    def add_folder(self, folder: Path) -> None:
        """Let a folder be removed."""
        self._tell(f"folder {folder}")

    def dismiss(self) -> None:
        """Let nothing end or be removed: all children have ended."""
        self._tell("done")

    def close(self) -> None:
        """End the watch, and what is left of the children unless it was dismissed."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        # Without a watcher the children still end when this process does so in order.
        with contextlib.suppress(OSError):
            self._process.stdin.write(os.fsencode(f"{line}\n"))
            self._process.stdin.flush()


@contextlib.contextmanager
def orphan_watch() -> Iterator[OrphanWatch]:
    """Yield a watch over the children that the block starts.

    The block dismisses it once all have ended. It cannot where a second Ctrl-C ends its
    clean-up: then the watch ends them.
    """
    watch = OrphanWatch()
    try:
        yield watch
    finally:
        watch.close()


@contextlib.contextmanager
def marked_environment(*folders: Path) -> Iterator[dict[str, str]]:
    """Yield an environment for child processes, and end all of them on leaving.

    Flower and Ray start daemons that leave their parent's process tree. All inherit a
    random mark, by which they are found again, even if this process is killed. They
    reach each other without a proxy, and import nothing from the working folder.

    Args:
        folders: The folders to remove if this process is killed.

    Yields:
        A copy of the environment with the mark and the other changes.
    """
    with orphan_watch() as watch:
        for folder in folders:
            watch.add_folder(folder)
        try:
            exceptions = proxy_exceptions(os.environ)
            yield {**os.environ, **exceptions, **SAFE_IMPORTS, MARK: watch.mark}
        finally:
            # A second Ctrl-C or SIGTERM must not stop the clean-up half way.
            with signals_handled(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
                end_marked(watch.mark)
            watch.dismiss()


def end_marked(mark: str, patience: float = 10.0) -> None:
    """End all processes that carry a mark: by SIGTERM first, then by SIGKILL.

    Args:
        mark: The value of the environment variable `MARK`.
        patience: Seconds between the two signals.
    """
    for number, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + wait
        _send(_marked(mark), number)
        while (processes := _marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
            if number == signal.SIGKILL:
                # Again, because one may have been starting another.
                _send(processes, number)
        if not processes:
            return


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _marked(mark: str) -> list[psutil.Process]:
    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARK) == mark:
                marked.append(process)
    return marked
