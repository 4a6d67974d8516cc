"""Engine `flower`: stock Flower simulation on Ray, started so that it can be trusted.

`flwr run` alone has three traps (flwr 1.41): it exits 0 when a run failed; it reuses
any SuperLink on its default port, whose Ray actors import client code from the folder
that SuperLink was started in; and that SuperLink stays behind. So every run here gets
a SuperLink of its own: private home, neutral working directory, free port, ended with
the run.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from instahide_fl.config import Config
from instahide_fl.engine.processes import keep_ray_errors, marked_environment
from instahide_fl.errors import EngineError
from instahide_fl.flower.app_bundle import stage_app
from instahide_fl.flower.command import (
    answers,
    command,
    flower_settings,
    free_port,
    last_line,
)
from instahide_fl.run_folder import LOGS, RunFolder

CONNECTION = "private"
START_SECONDS = 60.0  # for the SuperLink to answer
STATUS_SECONDS = 10.0  # between two looks at the run's status: each costs a process
END_SECONDS = (
    60.0  # for a run's status to turn terminal once its folder says it is over
)


def run_flower(config: Config, folder: RunFolder) -> None:
    """Run the experiment to its end.

    Args:
        config: the run's settings.
        folder: a run folder that is ready to be written.

    Raises:
        InstaHideError: the run failed; the reason is the ServerApp's own where it could
            say one.
    """
    logs = folder.path / LOGS
    with _private_superlink(logs) as superlink:
        app = stage_app(superlink.home / "app")
        run_id = superlink.submit(app, config)
        status = superlink.wait(run_id, folder)
    if failure := folder.failure():
        raise failure
    if status != "finished:completed" or not folder.finished:
        raise EngineError(
            f"Flower ended the run as {' '.join(status.split())!r}: see {logs}"
        )


@dataclass(frozen=True)
class _SuperLink:
    """A running SuperLink of our own.

    Attributes:
        process: the SuperLink.
        home: its private folder, also FLWR_HOME.
        environment: for every command that talks to it.
        logs: where commands leave what they print.
    """

    process: subprocess.Popen[bytes]
    home: Path
    environment: dict[str, str]
    logs: Path

    def submit(self, app: Path, config: Config) -> str:
        """Hand the app in and return the run's id.

        Raises:
            EngineError: Flower refused it.
        """
        settings = self.home / "run-config.toml"
        settings.write_text(tomli_w.dumps(config.to_run_config()))
        done = self._flwr(
            *("run", str(app), CONNECTION, "--format", "json"),
            *("--run-config", str(settings)),
            *("--federation-config", _federation(config)),
        )
        found = re.search(r'"run-id":\s*"?(\d+)', done.stdout)
        if done.returncode or not found:
            raise EngineError(f"Flower refused the run: {last_line(done)}")
        return found[1]

    def wait(self, run_id: str, folder: RunFolder) -> str:
        """Wait for the run's end and return its status.

        Raises:
            EngineError: the SuperLink died.
        """
        looked = time.monotonic()
        ended: float | None = None
        while True:
            if self.process.poll() is not None:
                raise EngineError(f"Flower's SuperLink died: see {self.logs}")
            now = time.monotonic()
            # The folder tells at once that a run is over; asking Flower takes seconds.
            over = folder.finished or folder.failure() is not None
            if over and ended is None:
                ended = now
            if over or now - looked > STATUS_SECONDS:
                looked = now
                status = self._status(run_id)
                if status.startswith("finished"):
                    return status
            if ended is not None and now - ended > END_SECONDS:
                return status
            time.sleep(0.2)

    def _status(self, run_id: str) -> str:
        done = self._flwr("list", CONNECTION, "--run-id", run_id, "--format", "json")
        try:
            run = json.loads(done.stdout)["runs"][0]
            details = str(run.get("status-details", ""))
            return str(run["status"]) + (
                "" if details in ("", "N/A") else f": {details}"
            )
        except (ValueError, KeyError, IndexError):
            return f"unknown ({last_line(done)})"

    def _flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [command("flwr"), *arguments],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        with (self.logs / "flwr.log").open("a") as log:
            log.write(f"$ flwr {' '.join(arguments)}\n{done.stdout}{done.stderr}\n")
        return done


@contextlib.contextmanager
def _private_superlink(logs: Path) -> Iterator[_SuperLink]:
    """Start a SuperLink and end it, with all it started, on leaving."""
    logs.mkdir(parents=True, exist_ok=True)
    # A short path: Ray puts Unix sockets below it, which may have 107 characters.
    home = Path(tempfile.mkdtemp(prefix="ihfl-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        with marked_environment() as environment:
            environment.update(_simulation_settings(home))
            port = free_port()
            process = _start(home, port, environment, logs)
            _await_answer(process, port, logs)
            yield _SuperLink(process, home, environment, logs)
    finally:
        if process is not None:
            process.wait()
        keep_ray_errors(home, logs)
        shutil.rmtree(home, ignore_errors=True)


def _simulation_settings(home: Path) -> dict[str, str]:
    return {
        **flower_settings(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(home),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Clients run side by side: threads of one would take the others' cores.
        "OMP_NUM_THREADS": "1",
    }


def _start(
    home: Path, port: int, environment: dict[str, str], logs: Path
) -> subprocess.Popen[bytes]:
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    settings = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    (home / "config.toml").write_text(tomli_w.dumps(settings))
    with (logs / "superlink.log").open("ab") as log:
        return subprocess.Popen(
            [
                command("flower-superlink"),
                *("--insecure", "--simulation", "--host", "127.0.0.1"),
                *("--port", str(port), "--disable-runtime-dependency-installation"),
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
        if answers(port, authority=None):
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
