"""Connect to Ray: a private one on this machine, or the user's own cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import ray
from ray.exceptions import RayError

import instahide_fl
from instahide_fl.child_processes import marked_environment
from instahide_fl.config import ResourcesConfig
from instahide_fl.engine.private_ray import (
    RAY_FOLDER,
    UNSAFE,
    check_private,
    is_cluster_open,
    keep_ray_errors,
    loopback_only,
    private_settings,
    reread_authentication,
)
from instahide_fl.errors import EngineError
from instahide_fl.interrupts import signals_handled
from instahide_fl.private_folder import private_folder

RETAINED_BYTES = 2**30  # of freed memory, which a worker does not give back
WORKER_VARIABLES = {
    # Workers do not take each other's cores.
    "OMP_NUM_THREADS": "1",
    # Keep freed memory for the next client, in one place whatever thread Ray uses:
    # giving it back and asking for it again takes several times as long as computing
    # an update in it.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(RETAINED_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(RETAINED_BYTES),
}

log = logging.getLogger("instahide_fl.engine")


@contextlib.contextmanager
def ray_cluster(resources: ResourcesConfig, logs: Path) -> Iterator[None]:
    """Connect to Ray: a private one on this machine, or the cluster of the settings.

    Args:
        resources: The `[resources]` table.
        logs: The folder for what workers write to their standard error.

    Raises:
        EngineError: Ray is in use in this process, or the cluster does not answer.
    """
    if ray.is_initialized():
        raise EngineError(
            "this process is connected to Ray already: call ray.shutdown() first, or "
            "use engine inline"
        )
    is_private = not resources.ray_address
    with private_folder() as home:
        try:
            with marked_environment(home) as environment:
                if is_private:
                    environment.update(private_settings())
                with _in_environment(environment):
                    try:
                        _connect(resources, home)
                        yield
                    finally:
                        ray.shutdown()
        finally:
            keep_ray_errors(home, logs)


def _connect(resources: ResourcesConfig, home: Path) -> None:
    # Ray puts the working folder first on the workers' import path, before Python's own
    # modules and this package: it gets an empty one.
    # And it answers SIGTERM in its own way: this command's handler comes back.
    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.chdir(home), signals_handled(handler, signal.SIGTERM):
        _init(resources, home)


def _init(resources: ResourcesConfig, home: Path) -> None:
    asks_for_token = reread_authentication()
    if resources.ray_address:
        _join(resources.ray_address)
        return
    if not asks_for_token:
        raise EngineError(UNSAFE.format("it does not ask for tokens"))
    with loopback_only():
        ray.init(
            address="local",
            num_cpus=resources.local_workers * resources.cpus_per_client,
            num_gpus=None if resources.gpus_per_client else 0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(home / RAY_FOLDER),
        )
    check_private()


def _join(address: str) -> None:
    """Connect to the user's own cluster."""
    _check_answers(address)
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": WORKER_VARIABLES},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        first = str(error).strip().splitlines()[0]
        raise EngineError(
            f"resources.ray-address: cannot join the Ray cluster at {address} ({first})"
        ) from None
    if is_cluster_open(ray.get_runtime_context().gcs_address):
        log.warning(
            "the Ray cluster at %s asks for no token: whoever reaches its ports can "
            "run programs as its user (docs/engines.md)",
            address,
        )


def _check_answers(address: str) -> None:
    """Refuse a cluster that is not there, which Ray would try to reach for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or another form that Ray itself checks
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"resources.ray-address: no Ray cluster at {address} ({error}): start one "
            f"with ray start --head --port={port}, or leave the setting empty"
        ) from None


@contextlib.contextmanager
def _in_environment(environment: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while: Ray hands on this process's own."""
    before = dict(os.environ)
    os.environ.update(environment)
    os.environ.update(
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            # Workers find this package even where it is not installed.
            "PYTHONPATH": os.pathsep.join(
                filter(None, [_package_root(), before.get("PYTHONPATH")])
            ),
            **WORKER_VARIABLES,
        }
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        # What else this process does with Ray is not this run's.
        reread_authentication()


def _package_root() -> str:
    return str(Path(instahide_fl.__file__).resolve().parents[1])
