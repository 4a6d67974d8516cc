"""Random kills over a deployed run: `python -m benchmarks.fault_campaign --kills 30`.

Clients, client apps in the middle of a round, the server app and the SuperLink are
killed (SIGKILL) at random moments of one run. Whatever is a service is started again
after a pause; a run that ended is continued with `output.resume`. In the end every
round must be in metrics.jsonl once, with all clients either counted or named, and the
accuracy is compared with the same apps on the same data without any fault.
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

from benchmarks.loopback import Federation, federation, port_answers
from benchmarks.reporting import RESULTS, save, show
from instahide_fl.config import Config
from instahide_fl.engine.logs import logging_to
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
    """Kills, and brings the run to its end nevertheless.

    Attributes:
        made: the federation.
        run: the run's folder.
        rng: chooses when and what to kill.
        kills: wanted.
        killed: so far, by kind.
        attempts: of the run.
        endings: why attempts ended, with how often.
        look: called every second.
        longest_gap: seconds without a new round or attempt.
    """

    made: Federation
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
        """Go on until the run is finished.

        Raises:
            RuntimeError: it hangs.
        """
        next_kill = time.monotonic() + PATIENCE
        progressed, known, waiting = time.monotonic(), -1, True
        while not RunFolder(self.run).finished:
            self.made.tend()
            self._keep_running()
            self.look(self)
            now = time.monotonic()
            if (rounds := self._rounds() + 1000 * self.attempts) != known:
                if known >= 0:
                    self.longest_gap = max(self.longest_gap, now - progressed)
                if known >= 0 and rounds // 1000 == known // 1000 and waiting:
                    next_kill, waiting = now + self._pause(), False
                progressed, known = now, rounds
            if now - progressed > HANG:
                raise RuntimeError(f"no progress for {HANG:g} s")
            if self.killed.total() < self.kills and now > next_kill:
                self._kill_something()
                # The kills are spread over the run: a round has to end in between.
                next_kill, waiting = time.monotonic() + PATIENCE, True
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
        if not port_answers(self.made.port):
            return  # the SuperLink is down just now
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.made.flwr("stop", self._run_id, "federation")
        if resume := (self.run / "config.toml").exists():
            RunFolder(self.run).clear_failure()
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self._run_id = self.made.submit(self.run, resume=resume)
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
        client = str(self.rng.choice(self.made.clients))
        if kind in ("client", "superlink"):
            service = self.made.services[client if kind == "client" else kind]
            if service.family():
                service.kill()
                self._count(kind, service.name)
            return
        place = client if kind == "client app" else "superlink"
        word = "flwr-clientapp" if kind == "client app" else "flwr-serverapp"
        for process in self._processes(place, word):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
                self._count(kind, place)
                return

    def _count(self, kind: str, name: str) -> None:
        self.killed[kind] += 1
        print(
            f"{time.strftime('%H:%M:%S')} kill {self.killed.total()}: {kind} "
            f"({name}), {self._rounds()} rounds"
        )

    def _processes(self, service: str, word: str) -> list[psutil.Process]:
        found = []
        for process in self.made.services[service].family():
            with contextlib.suppress(psutil.Error):
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return found


def undisturbed(made: Federation, run: Path) -> float:
    """Return the accuracy of the same apps on the same data, in this process."""
    config = made.config.with_values({"output.folder": str(run)})
    nodes = [
        {
            "client-name": name,
            "dataset": f"imagefolder:{made.folder / 'clients' / name / 'images'}",
        }
        for name in made.clients
    ]
    run_config = config.to_run_config()
    with importable_app() as (clients, server), logging_to(run.with_suffix(".log")):
        grid = InProcessGrid(clients.app, nodes, run_config)
        server.app(grid, server_context(run_config))
    return float(RunFolder(run).read_json("summary.json")["final_accuracy"])


def campaign(folder: Path, kills: int, rounds: int, seed: int) -> dict[str, Any]:
    """Kill, and return what became of the run."""
    start = time.monotonic()
    with federation(folder, CLIENTS, settings(rounds)) as made:
        rng = stream(seed, "fault-campaign")
        driven = Campaign(made, folder / "run", rng, kills)
        driven.drive()
        seconds = time.monotonic() - start
    reference = undisturbed(made, folder / "undisturbed")
    rows = RunFolder(folder / "run").metrics()
    accuracy = float(rows[-1]["test_accuracy"])
    whole = [row["round"] for row in rows] == list(range(1, rounds + 1))
    named = all(row["clients"] + len(row["failure_reasons"]) == CLIENTS for row in rows)
    return {
        "name": "fault-campaign",
        "rows": [
            {"killed": kind, "times": count} for kind, count in driven.killed.items()
        ],
        "kills": driven.killed.total(),
        "rounds": len(rows),
        "every_round_accounted_for": whole and named,
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
