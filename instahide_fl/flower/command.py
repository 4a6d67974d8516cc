"""Flower's programs: where they are, what they are told and what they said."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from instahide_fl.flower.tls import client_context


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


def flower_settings(home: Path) -> dict[str, str]:
    """Return what Flower's processes are told by their environment.

    Args:
        home: that Flower keeps its files in.
    """
    scripts = str(Path(sys.executable).parent)
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
    }


def deployed_environment(home: Path) -> dict[str, str]:
    """Return the whole environment of Flower's processes in a deployment.

    Args:
        home: that Flower keeps its files in.
    """
    environment = {**os.environ, **flower_settings(home), "PYTHONUNBUFFERED": "1"}
    # The app is what the server sends, whatever else lies on this machine.
    environment.pop("PYTHONPATH", None)
    return environment


def answers(port: int, authority: Path | None) -> bool:
    """Tell whether a SuperLink answers on a port of loopback.

    Args:
        port: of it.
        authority: certificate that its own is checked with; None without TLS.
    """
    # A proxy from the environment must not stand between us and our own machine.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if authority is not None:
        handlers.append(urllib.request.HTTPSHandler(context=client_context(authority)))
    scheme = "http" if authority is None else "https"
    opener = urllib.request.build_opener(*handlers)
    try:
        opener.open(f"{scheme}://127.0.0.1:{port}/health", timeout=3).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
