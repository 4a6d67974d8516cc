"""A Ray for one run alone: on loopback, with a token that is written nowhere.

Without this Ray listens on all interfaces, and runs the code of whoever reaches it.

What this relies on (Ray 2.52 and later; 2.55 was tried): the environment variables of
`private_settings`, Ray's classes that `reread_authentication` names, and the constant
that `loopback_only` changes. `check_private` refuses a Ray that is not as asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instahide_fl.errors import EngineError

RAY_FOLDER = "ray"  # in a run's private folder, which Ray itself opens to everybody
LOOPBACK_ADDRESSES = ("127.0.0.1", "::1")
# Ray keeps a single machine on loopback where it supports no cluster, which it asks
# this variable; other loopback addresses make it listen everywhere.
CLUSTERS_SUPPORTED = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
AUTHENTICATION = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
PROBE = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_exists(b"probe", None, timeout=10)
"""
PROBE_SECONDS = 30.0
UNSAFE = (
    "this version of Ray cannot be kept to this run ({}): whoever reaches its ports "
    "could run programs as you. Install the version that Flower asks for (pip install "
    '"flwr[simulation]"), or use --engine inline'
)


def private_settings() -> dict[str, str]:
    """Return the environment variables of a private Ray, with a new token.

    The token must stay in the environment: never in a file or on a command line.
    """
    return {
        AUTHENTICATION: "token",
        TOKEN: secrets.token_hex(32),
        CLUSTERS_SUPPORTED: "0",
    }


def reread_authentication() -> bool:
    """Let Ray read mode and token anew, which it remembers from the process's start.

    Returns:
        Whether Ray asks for a token by now.

    Raises:
        EngineError: This version of Ray has no tokens.
    """
    raylet: Any = importlib.import_module("ray._raylet")
    try:
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        raylet.Config.initialize("")
        mode = raylet.get_authentication_mode()
        return bool(mode == raylet.AuthenticationMode.TOKEN)
    except AttributeError:
        raise EngineError(UNSAFE.format("it has no tokens")) from None


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Let a Ray that this process starts listen on loopback alone."""
    from ray._private import ray_constants

    # Ray has read its variable by now.
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def check_private() -> None:
    """Refuse the Ray that this process has started if others could reach it.

    Raises:
        EngineError: It listens on other addresses than those of loopback.
    """
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    addresses = {str(node["NodeManagerAddress"]) for node in nodes}
    if not addresses <= set(LOOPBACK_ADDRESSES):
        raise EngineError(UNSAFE.format(f"it listens on {', '.join(addresses)}"))


def keep_ray_errors(home: Path, logs: Path) -> None:
    """Copy what Ray's workers wrote to stderr, before their folder is removed.

    Args:
        home: The run's private folder.
        logs: The folder of the run's logs.
    """
    for path in sorted(home.glob(f"{RAY_FOLDER}/session_*/logs/worker-*.err")):
        with contextlib.suppress(OSError):
            status = path.lstat()
            is_linked = path.parent.is_symlink() or path.parents[1].is_symlink()
            if status.st_size and stat.S_ISREG(status.st_mode) and not is_linked:
                shutil.copy(path, logs)


def is_cluster_open(address: str) -> bool:
    """Tell whether a Ray cluster obeys whoever has no token.

    A token in the environment says nothing: a cluster without tokens ignores it.

    Args:
        address: The cluster's HOST:PORT, which this process has joined.
    """
    if os.environ.get(AUTHENTICATION) != "token":
        return True
    # In a process of its own: Ray remembers the token of this one.
    probe = [sys.executable, "-c", PROBE, address]
    environment = {**os.environ, AUTHENTICATION: "disabled"}
    with contextlib.suppress(subprocess.TimeoutExpired):
        ended = subprocess.run(
            probe,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
        )
        return ended.returncode == 0
    return False
