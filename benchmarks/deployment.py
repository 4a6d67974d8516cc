"""Measure what a round of a deployment costs: `python -m benchmarks.deployment`.

A federation of real processes on loopback, with TLS and keys, trains a small network,
one step a round. Most of it is Flower's: it starts a process for each message, and
clients and server look for news every three seconds. What of it is ours is measured
beside it: how long a client's process takes to import Flower, and our app after it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.loopback import start_federation
from benchmarks.reporting import RESULTS, save, show
from instahide_fl.config import Config
from instahide_fl.flower.app_files import app_root
from instahide_fl.run_folder import RunFolder

FLOWER = "import flwr.supernode.runtime.run_clientapp"
OURS = FLOWER + "; import clients.app"
STARTS = 5


def main() -> None:
    """Measure, show and save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    result = measure(arguments.clients, arguments.rounds)
    show(result)
    save(result, arguments.out)


def measure(clients: int, rounds: int) -> dict[str, Any]:
    """Run some rounds and return what they cost, in seconds."""
    config = Config().with_values(
        {"train.rounds": rounds, "train.timeout": 120.0, "model.name": "mlp"}
    )
    with (
        tempfile.TemporaryDirectory(prefix="deployed-") as folder,
        start_federation(Path(folder) / "f", clients, config) as federation,
    ):
        run = federation.folder / "run"
        federation.submit(run, resume=False)
        while not RunFolder(run).finished:
            federation.tend()
            time.sleep(0.2)
        rows = RunFolder(run).metrics()[1:]  # the first one installs the app
    started = {name: _start_seconds(code) for name, code in _programs().items()}
    seconds = [float(row["seconds"]) for row in rows]
    return {
        "name": "deployment",
        "clients": clients,
        "rows": [
            {
                "round": statistics.median(seconds),
                "shortest": min(seconds),
                "longest": max(seconds),
                "computing": statistics.median(r["compute_seconds"] for r in rows),
                "importing Flower": started["Flower"],
                "importing our app": started["ours"] - started["Flower"],
            }
        ],
    }


def _programs() -> dict[str, str]:
    return {"Flower": FLOWER, "ours": OURS}


def _start_seconds(code: str) -> float:
    """Return the median of how long a process takes that only imports."""
    durations = []
    for _ in range(STARTS):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            env={**os.environ, "PYTHONPATH": str(app_root())},
        )
        durations.append(time.perf_counter() - begin)
    return statistics.median(durations)


if __name__ == "__main__":
    main()
