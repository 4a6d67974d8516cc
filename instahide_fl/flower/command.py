"""Flower's programs: where they are, and what their environment tells them.

What this relies on (flwr 1.41 and 1.42), which another version of Flower may change:

- the programs are `flwr`, `flower-superlink`, `flower-supernode`, and Flower finds its
  own (`flwr-clientapp`, `flower-superexec`) on PATH;
- FLWR_HOME is the folder of its files, with the table `superlink` in `config.toml`;
- FLWR_TELEMETRY_ENABLED and FLWR_DISABLE_UPDATE_CHECK keep it from calling home. If
  another version ignores them, runs still work;
- a SuperLink answers on `/health`, with whatever status.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import tomli_w

from instahide_fl.environment import proxy_exceptions
from instahide_fl.flower.tls import client_context


def command(name: str) -> str:
    """Return the path of a script of this environment, else rely on PATH."""
    script = Path(sys.executable).parent / name
    return str(script) if script.exists() else name


def as_arguments(options: Mapping[str, str]) -> list[str]:
    """Return a command's options as its arguments; an empty value stands for a flag."""
    return [word for option in options.items() for word in option if word]


def last_line(completed: subprocess.CompletedProcess[str]) -> str:
    """Return why one of Flower's commands failed: its last words, in JSON or not."""
    printed = completed.stderr + "\n" + completed.stdout
    with contextlib.suppress(ValueError, KeyError):
        printed = str(json.loads(completed.stdout)["error-message"])
    lines = printed.strip().splitlines()
    return lines[-1] if lines else f"exit code {completed.returncode}"


def free_port() -> int:
    """Return a port of loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flower_settings(home: Path) -> dict[str, str]:
    """Return the environment variables that Flower's processes read.

    Args:
        home: The folder for Flower's own files.
    """
    scripts = str(Path(sys.executable).parent)
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
    }


def deployed_environment(home: Path) -> dict[str, str]:
    """Return the complete environment of Flower's processes in a deployment.

    Args:
        home: The folder for Flower's own files.
    """
    environment = {
        **os.environ,
        **proxy_exceptions(os.environ),
        **flower_settings(home),
        "PYTHONUNBUFFERED": "1",
    }
    # The app is what the server sends, whatever else lies on this machine.
    environment.pop("PYTHONPATH", None)
    return environment


def write_connection(
    home: Path, name: str, address: str, authority: Path | None
) -> None:
    """Tell Flower's commands where a SuperLink is.

    Args:
        home: The folder for Flower's own files, which exists.
        name: The name that commands call the SuperLink by; it becomes the default.
        address: HOST:PORT of the SuperLink.
        authority: The certificate that the SuperLink's own is checked with; None
            without TLS.
    """
    trust = (
        {"insecure": True}
        if authority is None
        else {"root-certificates": str(authority)}
    )
    settings = {"superlink": {"default": name, name: {"address": address, **trust}}}
    (home / "config.toml").write_text(tomli_w.dumps(settings))


def superlink_answers(port: int, authority: Path | None) -> bool:
    """Tell whether a SuperLink answers on a port of loopback.

    Args:
        port: The SuperLink's port.
        authority: The certificate that the SuperLink's own is checked with; None
            without TLS.
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
