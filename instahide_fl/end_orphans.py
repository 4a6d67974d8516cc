"""Wait for the end of the process that started this one, and end what it left behind.

`child_processes` runs this file as a program. It uses Python's own modules alone, so
that it starts in a moment and takes little memory. Standard input is a pipe from the
process that it watches; each line is one of

    mark NAME=VALUE     end processes with this environment variable
    session NUMBER      end processes of this session
    folder PATH         remove this folder
    done                nothing is left: do none of this

The pipe ends when that process does, whatever ends it: SIGKILL gives it no say.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator

MAX_LOOKS = 100  # for processes that are left
LOOKS_WITHOUT = 3  # in a row without any, after which none is coming any more
LOOK_SECONDS = 0.1  # between two looks


def main() -> None:
    """Read what to end and to remove, and do so when the pipe ends."""
    marks: list[bytes] = []
    sessions: list[int] = []
    folders: list[str] = []
    for line in sys.stdin.buffer:
        word, _, value = line.rstrip(b"\n").partition(b" ")
        if word == b"mark":
            marks.append(value)
        elif word == b"session":
            sessions.append(int(value))
        elif word == b"folder":
            folders.append(os.fsdecode(value))
        elif word == b"done":
            return
    end_processes(marks, sessions)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def end_processes(marks: list[bytes], sessions: list[int]) -> None:
    """Kill processes until none is left.

    Args:
        marks: The environment variables, as NAME=VALUE, of processes to kill.
        sessions: The numbers of the sessions whose processes are to be killed.
    """
    looks_without = 0
    for _ in range(MAX_LOOKS):
        processes = list(_processes(marks, sessions))
        looks_without = 0 if processes else looks_without + 1
        if looks_without == LOOKS_WITHOUT:
            return
        for process in processes:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)


def _processes(marks: list[bytes], sessions: list[int]) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            # After the name, which may hold anything: state, parent, group, session.
            fields = _content(name, "stat").rpartition(b")")[2].split()
            is_marked = any(mark in _content(name, "environ") for mark in marks)
            if fields[0] != b"Z" and (is_marked or int(fields[3]) in sessions):
                yield int(name)


def _content(process: str, name: str) -> bytes:
    """Return a file of a process; empty if it is another user's."""
    try:
        with open(f"/proc/{process}/{name}", "rb") as file:
            return file.read()
    except PermissionError:
        return b""


if __name__ == "__main__":
    main()
