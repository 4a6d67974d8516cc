"""End all child processes of a run, whatever happens."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from instahide_fl.environment import SAFE_IMPORTS, proxy_exceptions
from instahide_fl.interrupts import signals_handled

MARK = "INSTAHIDE_FL_LAUNCH"


@contextlib.contextmanager
def marked_environment() -> Iterator[dict[str, str]]:
    """Yield an environment for child processes, and end all of them on leaving.

    Flower and Ray start daemons that leave their parent's process tree. All inherit a
    random mark, by which they are found again. They reach each other without a proxy,
    and import nothing from the working folder.

    Yields:
        A copy of the environment with the mark and the other changes.
    """
    mark = secrets.token_hex(16)
    try:
        exceptions = proxy_exceptions(os.environ)
        yield {**os.environ, **exceptions, **SAFE_IMPORTS, MARK: mark}
    finally:
        # A second Ctrl-C must not stop the clean-up half way.
        with signals_handled(signal.SIG_IGN, signal.SIGINT):
            end_marked(mark)


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


def keep_ray_errors(home: Path, logs: Path) -> None:
    """Copy what Ray's workers wrote to stderr, before their folder is removed."""
    for path in sorted(home.glob("ray/session_*/logs/worker-*.err")):
        with contextlib.suppress(OSError):
            if path.stat().st_size and not path.parent.is_symlink():
                shutil.copy(path, logs)


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
