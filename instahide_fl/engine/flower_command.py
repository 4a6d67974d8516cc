"""Calling Flower's command line: where it is, what it said, and a port to meet on."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path


def command(name: str) -> str:
    """Return the path of a script of this environment, else rely on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return why a command of Flower's failed: its last words, in JSON or not."""
    printed = done.stderr + "\n" + done.stdout
    with contextlib.suppress(ValueError, KeyError):
        printed = str(json.loads(done.stdout)["error-message"])
    lines = printed.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def free_port() -> int:
    """Return a port of loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
