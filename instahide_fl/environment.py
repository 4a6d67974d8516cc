"""The environment variables of the processes that a command starts."""

from __future__ import annotations

from collections.abc import Mapping

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYTHING_EXCEPTED = "*"

# Python puts the working folder first on the import path of `python -c` and `-m`, by
# which multiprocessing and others start processes: a file random.py there would be
# imported in place of Python's own.
SAFE_IMPORTS = {"PYTHONSAFEPATH": "1"}


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
