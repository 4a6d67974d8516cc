"""Random kills over a deployed run: `python -m benchmarks.fault_campaign --kills 30`.

Clients, client apps in the middle of a round, the server app and the SuperLink are
killed (SIGKILL) at random moments of one run. A killed service is started again after a
pause; a run that ended is continued with `output.resume`. In the end every round must
be in metrics.jsonl once, with all clients either counted or named, and the accuracy is
compared with the same apps on the same data without any fault.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.loopback import Federation, start_federation
from benchmarks.reporting import RESULTS, save, show
from instahide_fl.config import Config
from instahide_fl.engine.logs import logging_to
from instahide_fl.errors import EngineError
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.in_process_grid import InProcessGrid, server_context
from instahide_fl.rng import stream
from instahide_fl.run_folder import RunFolder

CLIENTS = 3
PAUSE = (2.0, 25.0)  # seconds from a round's end to the next kill, drawn at random
PATIENCE = 120.0  # seconds without a round after which the next kill comes anyway
HANG = 400.0  # seconds without a new round or attempt: something hangs
GRACE = 45.0  # seconds that a submitted run may take until its server app lives
KINDS = {"client": 0.35, "client app": 0.25, "server app": 0.25, "superlink": 0.15}


def settings(rounds: int) -> Config:
    """Return the run's settings: a round goes on as long as one client answers."""
    return Config().with_values(
        {
            "train.rounds": rounds,
            "train.mode": "update",
            "train.local-epochs": 2,
            "train.momentum": 0.9,
            "train.schedule": "cosine",
            "train.min-updates": 1,
            "train.timeout": 40.0,
            "train.evaluate-every": 5,
            "train.checkpoint-every": 2,
        }
    )


@dataclass
class Campaign:
    """Kills processes of a run, and brings the run to its end nevertheless.

    Attributes:
        federation: The federation, all of which is running.
        run: The run's folder.
        rng: The generator that chooses when and what to kill.
        kills: The number of kills to reach.
        killed: The number of kills so far, by kind.
        attempts: How often the run was submitted.
        endings: How often attempts ended, by the reason.
        look: A function that is called every second.
        longest_gap: The longest time without a new round or attempt, in seconds.
    """

    federation: Federation
    run: Path
    rng: np.random.Generator
    kills: int
    killed: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    look: Callable[[Campaign], None] = lambda campaign: None
    longest_gap: float = 0.0
    _run_id: str = ""
    _submitted: float = 0.0
    _seen_alive: bool = False
    _noted: int = 0

    def drive(self) -> None:
        """Kill, restart and resume until the run is finished.

        Raises:
            RuntimeError: The run hangs.
        """
        next_kill = time.monotonic() + PATIENCE
        # Progress is the rounds, with the number of attempts as thousands.
        advanced_at, progress, awaits_round = time.monotonic(), -1, True
        while not RunFolder(self.run).finished:
            self.federation.tend()
            self._keep_running()
            self.look(self)
            now = time.monotonic()
            if (reached := self._rounds() + 1000 * self.attempts) != progress:
                if progress >= 0:
                    self.longest_gap = max(self.longest_gap, now - advanced_at)
                same_attempt = reached // 1000 == progress // 1000
                if progress >= 0 and same_attempt and awaits_round:
                    next_kill, awaits_round = now + self._pause(), False
                advanced_at, progress = now, reached
            if now - advanced_at > HANG:
                raise RuntimeError(f"no progress for {HANG:g} s")
            if self.killed.total() < self.kills and now > next_kill:
                self._kill_something()
                # The kills are spread over the run: a round has to end in between.
                next_kill, awaits_round = time.monotonic() + PATIENCE, True
            time.sleep(1.0)

    def _pause(self) -> float:
        return float(self.rng.uniform(*PAUSE))

    def _rounds(self) -> int:
        path = self.run / "metrics.jsonl"
        return path.read_text().count("\n") if path.is_file() else 0

    def _keep_running(self) -> None:
        """Continue the run if its last attempt is over."""
        failure = RunFolder(self.run).failure()
        if self.attempts and not self._is_over(failure is not None):
            return
        if self._noted < self.attempts:
            self._noted = self.attempts
            self.endings[str(failure) if failure else "the server app was gone"] += 1
        if not self.federation.is_up():
            return  # the SuperLink is down just now
        with contextlib.suppress(EngineError, subprocess.TimeoutExpired):
            self.federation.flwr.stop(self._run_id)
        if resume := (self.run / "config.toml").exists():
            RunFolder(self.run).clear_failure()
        with contextlib.suppress(EngineError, subprocess.TimeoutExpired):
            self._run_id = self.federation.submit(self.run, resume=resume)
            self.attempts += 1
            self._submitted, self._seen_alive = time.monotonic(), False
            print(f"{time.strftime('%H:%M:%S')} attempt {self.attempts}: {failure}")

    def _is_over(self, failed: bool) -> bool:
        alive = bool(self._processes("superlink", "flwr-serverapp"))
        self._seen_alive = self._seen_alive or alive
        since = time.monotonic() - self._submitted
        return failed or (not alive and (self._seen_alive or since > GRACE))

    def _kill_something(self) -> None:
        kind = str(self.rng.choice(list(KINDS), p=list(KINDS.values())))
        client = str(self.rng.choice(self.federation.clients))
        if kind in ("client", "superlink"):
            service = self.federation.services[client if kind == "client" else kind]
            if service.family():
                service.kill()
                self._count(kind, service.name)
            return
        owner = client if kind == "client app" else "superlink"
        program = "flwr-clientapp" if kind == "client app" else "flwr-serverapp"
        for process in self._processes(owner, program):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
                self._count(kind, owner)
                return

    def _count(self, kind: str, name: str) -> None:
        self.killed[kind] += 1
        print(
            f"{time.strftime('%H:%M:%S')} kill {self.killed.total()}: {kind} "
            f"({name}), {self._rounds()} rounds"
        )

    def _processes(self, service: str, program: str) -> list[psutil.Process]:
        """Return the processes of a service that run one of Flower's programs."""
        matching = []
        for process in self.federation.services[service].family():
            with contextlib.suppress(psutil.Error):
                if program in " ".join(process.cmdline()):
                    matching.append(process)
        return matching


def undisturbed(federation: Federation, run: Path) -> float:
    """Return the accuracy of the same apps on the same data, in this process."""
    config = federation.config.with_values({"output.folder": str(run)})
    nodes = [
        {
            "client-name": name,
            "dataset": f"imagefolder:{federation.folder / 'clients' / name / 'images'}",
        }
        for name in federation.clients
    ]
    run_config = config.to_run_config()
    with importable_app() as (clients, server), logging_to(run.with_suffix(".log")):
        grid = InProcessGrid(clients.app, nodes, run_config)
        server.app(grid, server_context(run_config))
    return float(RunFolder(run).read_json("summary.json")["final_accuracy"])


def campaign(folder: Path, kills: int, rounds: int, seed: int) -> dict[str, Any]:
    """Run a campaign of kills, and return what became of the run."""
    start = time.monotonic()
    with start_federation(folder, CLIENTS, settings(rounds)) as federation:
        rng = stream(seed, "fault-campaign")
        driven = Campaign(federation, folder / "run", rng, kills)
        driven.drive()
        seconds = time.monotonic() - start
    reference = undisturbed(federation, folder / "undisturbed")
    rows = RunFolder(folder / "run").metrics()
    accuracy = float(rows[-1]["test_accuracy"])
    complete = [row["round"] for row in rows] == list(range(1, rounds + 1))
    named = all(row["clients"] + len(row["failure_reasons"]) == CLIENTS for row in rows)
    return {
        "name": "fault-campaign",
        "rows": [
            {"killed": kind, "times": count} for kind, count in driven.killed.items()
        ],
        "kills": driven.killed.total(),
        "rounds": len(rows),
        "every_round_accounted_for": complete and named,
        "rounds_without_all_clients": sum(row["failures"] > 0 for row in rows),
        "attempts": driven.attempts,
        "endings": dict(driven.endings),
        "longest_seconds_without_progress": driven.longest_gap,
        "minutes": seconds / 60,
        "accuracy": accuracy,
        "accuracy_undisturbed": reference,
        "points_between": abs(accuracy - reference) * 100,
    }


def main() -> None:
    """Run the campaign, show it and write its file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="faults-")) / "f"
    result = campaign(folder, arguments.kills, arguments.rounds, arguments.seed)
    show(result)
    save(result, arguments.out)


if __name__ == "__main__":
    main()
