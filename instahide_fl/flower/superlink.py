"""One way to talk to a SuperLink: Flower's command `flwr`, and its answers in JSON.

What this relies on (flwr 1.41 and 1.42), which another version of Flower may change:

- `flwr run`, `list`, `stop` and `supernode` take the name of a connection from
  `config.toml` in FLWR_HOME, whose table `superlink` names it;
- with `--format json` they print one object: `run-id` (after Flower's own lines in
  `flwr run`), `runs` with `run-id`, `status` and `status-details`, `nodes` with
  `node-id` and `status`, and on failure `success: false` with `error-message`;
- a status begins with "finished" once nothing happens any more.

Another output ends in an `EngineError` that quotes Flower's last words.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import tomli_w

from instahide_fl.config import Config
from instahide_fl.errors import EngineError
from instahide_fl.flower.command import as_arguments, command, last_line
from instahide_fl.run_folder import RunFolder

STATUS_SECONDS = 10.0  # between two looks at a run's status: each costs a process
END_SECONDS = 60.0  # for a run's status to turn once its folder says that it is over


@dataclass(frozen=True)
class FlowerRun:
    """A run, as a SuperLink lists it.

    Attributes:
        identifier: Flower's number of the run.
        status: Flower's words, for instance "finished:failed"; empty if unknown.
        details: Flower's explanation of the status, or why the status is unknown.
    """

    identifier: str
    status: str
    details: str = ""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Read one entry of `flwr list`."""
        details = str(entry.get("status-details", ""))
        shown = "" if details == "N/A" else details
        return cls(str(entry["run-id"]), str(entry["status"]), shown)

    @property
    def is_over(self) -> bool:
        """Whether nothing happens any more."""
        return self.status.startswith("finished")

    def __str__(self) -> str:
        if not self.status:
            return f"unknown ({self.details})"
        return f"{self.status}: {self.details}" if self.details else self.status


@dataclass(frozen=True)
class FlwrCommand:
    """The command `flwr`, for one SuperLink.

    Attributes:
        connection: The SuperLink's name in the `config.toml` of FLWR_HOME.
        folder: The working directory of every command.
        environment: All environment variables of every command.
        log: A file that takes each command and what it printed; None for no log.
        timeout: Seconds that a command may take; None for no limit.
    """

    connection: str
    folder: Path
    environment: Mapping[str, str]
    log: Path | None = None
    timeout: float | None = None

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `flwr` to its end.

        Raises:
            TimeoutExpired: The command takes longer than `timeout`.
        """
        completed = subprocess.run(
            [command("flwr"), *arguments],
            cwd=self.folder,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=self.timeout,
        )
        if self.log is not None:
            output = f"{completed.stdout}{completed.stderr}"
            with self.log.open("a") as log:
                log.write(f"$ flwr {' '.join(arguments)}\n{output}\n")
        return completed

    def query(self, *arguments: str) -> dict[str, Any]:
        """Run `flwr ... --format json` and return what it prints.

        Raises:
            EngineError: The command failed.
        """
        completed = self.call(*arguments, "--format", "json")
        failure = f"flwr {arguments[0]} failed: {last_line(completed)}"
        try:
            answer: dict[str, Any] = json.loads(completed.stdout)
        except ValueError:
            raise EngineError(failure) from None
        if not answer.get("success", True):
            raise EngineError(failure)
        return answer

    def submit(self, app: Path, config: Config, *options: str) -> str:
        """Hand in an app and return the run's identifier.

        Args:
            app: The app's folder; the settings are written to a file beside it.
            config: The run's settings.
            options: Further options of `flwr run`.

        Raises:
            EngineError: Flower refused the run.
        """
        settings = app.with_name("run-config.toml")
        settings.write_text(tomli_w.dumps(config.to_run_config()))
        fixed = as_arguments({"--format": "json", "--run-config": str(settings)})
        completed = self.call("run", str(app), self.connection, *fixed, *options)
        # Flower's own lines may stand around the JSON here.
        run_id = re.search(r'"run-id":\s*"?(\d+)', completed.stdout)
        if completed.returncode or not run_id:
            raise EngineError(f"Flower refused the run: {last_line(completed)}")
        return run_id[1]

    def runs(self) -> list[FlowerRun]:
        """Return all runs of the SuperLink, the newest first.

        Raises:
            EngineError: Flower does not say.
        """
        entries = self.query("list", self.connection)["runs"]
        return [FlowerRun.from_json(entry) for entry in entries]

    def find_run(self, identifier: str) -> FlowerRun:
        """Return a run; its status is empty if Flower does not say."""
        options = {"--run-id": identifier, "--format": "json"}
        completed = self.call("list", self.connection, *as_arguments(options))
        try:
            return FlowerRun.from_json(json.loads(completed.stdout)["runs"][0])
        except (ValueError, KeyError, IndexError):
            return FlowerRun(identifier, "", last_line(completed))

    def stop(self, identifier: str) -> None:
        """Stop a run.

        Raises:
            EngineError: Flower refused to.
        """
        completed = self.call("stop", identifier, self.connection)
        if completed.returncode:
            reason = last_line(completed)
            raise EngineError(f"run {identifier} was not stopped: {reason}")


def await_end(
    folder: RunFolder,
    look_up: Callable[[], FlowerRun],
    check: Callable[[], None] = lambda: None,
) -> FlowerRun:
    """Wait until a run is over.

    Args:
        folder: The run's folder, which tells at once when the run is over.
        look_up: Asks Flower about the run, which takes seconds.
        check: Called several times a second; raises to end the waiting.

    Returns:
        Flower's last word on the run.
    """
    asked_at = time.monotonic()
    over_since: float | None = None
    while True:
        check()
        now = time.monotonic()
        is_over = folder.finished or folder.failure() is not None
        if is_over and over_since is None:
            over_since = now
        if is_over or now - asked_at > STATUS_SECONDS:
            asked_at = now
            run = look_up()
            if run.is_over:
                return run
        if over_since is not None and now - over_since > END_SECONDS:
            return run
        time.sleep(0.2)
