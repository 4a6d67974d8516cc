"""Engine `flower`: stock Flower simulation on Ray, started so that it can be trusted.

`flwr run` alone has three traps (flwr 1.41 and 1.42): it exits 0 when a run failed; it
reuses any SuperLink on its default port, whose Ray actors import client code from the
folder that SuperLink was started in; and that SuperLink stays behind. So every run here
gets a SuperLink of its own: private home, neutral working directory, free port, ended
with the run.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from instahide_fl.child_processes import marked_environment
from instahide_fl.config import Config
from instahide_fl.engine.private_ray import keep_ray_errors, private_settings
from instahide_fl.errors import EngineError
from instahide_fl.flower.app_bundle import stage_app
from instahide_fl.flower.command import (
    as_arguments,
    command,
    flower_settings,
    free_port,
    superlink_answers,
    write_connection,
)
from instahide_fl.flower.superlink import FlwrCommand, await_end
from instahide_fl.private_folder import private_folder
from instahide_fl.run_folder import LOGS, RunFolder

CONNECTION = "private"
START_SECONDS = 60.0  # for the SuperLink to answer


def run_flower(config: Config, folder: RunFolder) -> None:
    """Run the experiment to its end.

    Args:
        config: The run's settings.
        folder: A run folder that is ready to be written.

    Raises:
        InstaHideError: The run failed; the reason is the ServerApp's own where it could
            say one.
    """
    logs = folder.path / LOGS
    with _private_superlink(logs) as superlink:
        app, flwr = stage_app(superlink.home / "app"), superlink.flwr
        options = ("--federation-config", _federation(config))
        run_id = flwr.submit(app, config, *options)
        check = partial(_check_alive, superlink.process, logs)
        status = str(await_end(folder, partial(flwr.find_run, run_id), check))
    if failure := folder.failure():
        raise failure
    if status != "finished:completed" or not folder.finished:
        raise EngineError(
            f"Flower ended the run as {' '.join(status.split())!r}: see {logs}"
        )


def _check_alive(process: subprocess.Popen[bytes], logs: Path) -> None:
    if process.poll() is not None:
        raise EngineError(f"Flower's SuperLink died: see {logs}")


@dataclass(frozen=True)
class _SuperLink:
    """A running SuperLink of this run's own.

    Attributes:
        process: The SuperLink.
        home: Its private folder, also FLWR_HOME.
        flwr: Flower's command for this SuperLink.
    """

    process: subprocess.Popen[bytes]
    home: Path
    flwr: FlwrCommand


@contextlib.contextmanager
def _private_superlink(logs: Path) -> Iterator[_SuperLink]:
    """Start a SuperLink and end it, with all it started, on leaving."""
    logs.mkdir(parents=True, exist_ok=True)
    process: subprocess.Popen[bytes] | None = None
    with private_folder() as home:
        try:
            with marked_environment(home) as environment:
                environment.update(_simulation_settings(home))
                # The user's own cluster, which Ray would join instead of starting one.
                environment.pop("RAY_ADDRESS", None)
                port = free_port()
                process = _start(home, port, environment, logs)
                _await_answer(process, port, logs)
                flwr = FlwrCommand(CONNECTION, home, environment, logs / "flwr.log")
                yield _SuperLink(process, home, flwr)
        finally:
            if process is not None:
                process.wait()
            keep_ray_errors(home, logs)


def _simulation_settings(home: Path) -> dict[str, str]:
    return {
        **flower_settings(home),
        **private_settings(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(home),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Clients run side by side: threads of one would take the others' cores.
        "OMP_NUM_THREADS": "1",
    }


def _start(
    home: Path, port: int, environment: dict[str, str], logs: Path
) -> subprocess.Popen[bytes]:
    write_connection(home, CONNECTION, f"127.0.0.1:{port}", authority=None)
    options = {
        "--insecure": "",
        "--simulation": "",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--disable-runtime-dependency-installation": "",
    }
    with (logs / "superlink.log").open("ab") as log:
        return subprocess.Popen(
            [
                command("flower-superlink"),
                *as_arguments(options),
            ],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C goes to us alone; we end the rest in order.
            start_new_session=True,
        )


def _await_answer(process: subprocess.Popen[bytes], port: int, logs: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if superlink_answers(port, authority=None):
            return
        time.sleep(0.1)
    raise EngineError(f"Flower's SuperLink did not start: see {logs}/superlink.log")


def _federation(config: Config) -> str:
    resources = config.resources
    values = {
        "num-supernodes": config.partition.num_clients,
        "client-resources-num-cpus": resources.cpus_per_client,
        "client-resources-num-gpus": resources.gpus_per_client,
        "init-args-log-to-driver": "false",
    }
    if resources.workers:
        values["init-args-num-cpus"] = resources.workers * resources.cpus_per_client
    return " ".join(f"{key}={value}" for key, value in values.items())
