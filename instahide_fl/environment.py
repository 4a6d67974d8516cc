"""The environment variables of the processes that a command starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYTHING_EXCEPTED = "*"

# Python puts the working folder first on the import path of `python -c` and `-m`, by
# which multiprocessing and others start processes: a file random.py there would be
# imported in place of Python's own.
SAFE_IMPORTS = {"PYTHONSAFEPATH": "1"}


@contextlib.contextmanager
def safe_imports() -> Iterator[None]:
    """Keep the working folder off the import path of processes started in the block."""
    before = {name: os.environ.get(name) for name in SAFE_IMPORTS}
    os.environ.update(SAFE_IMPORTS)
    try:
        yield
    finally:
        # A program that calls a command keeps its own environment.
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def proxy_exceptions(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep a proxy out of connections within this machine.

    Hosts that the environment excepts already stay excepted.

    Args:
        environment: The variables as they are.

    Returns:
        The variables to set: `no_proxy` and `NO_PROXY`, of which programs read one or
        the other, and `no_grpc_proxy`, where it is set, before which gRPC reads no
        other.
    """
    names = {"no_proxy": "NO_PROXY", "NO_PROXY": "no_proxy"}
    variables = {
        name: _with_loopback(environment.get(name) or environment.get(other, ""))
        for name, other in names.items()
    }
    if excepted := environment.get("no_grpc_proxy"):
        variables["no_grpc_proxy"] = _with_loopback(excepted)
    return variables


def _with_loopback(excepted: str) -> str:
    hosts = [host.strip() for host in excepted.split(",") if host.strip()]
    if EVERYTHING_EXCEPTED in hosts:
        return excepted
    return ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])
