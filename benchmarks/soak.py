"""Memory and file handles of a deployment over time: `python -m benchmarks.soak`.

A run of InstaHide over TLS goes on for as long as asked. Every few seconds the memory
and the open files of each process that lives through the run are noted: SuperLink,
SuperNodes, their executors, and the server app. Client apps, of which Flower starts a
new one for each message, are noted as a peak.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.loopback import Federation, federation
from benchmarks.reporting import RESULTS, save, show
from instahide_fl.config import Config
from instahide_fl.files import write_text
from instahide_fl.run_folder import RunFolder

CLIENTS = 3
EVERY = 5.0  # seconds between two samples
WARM_UP = 300.0  # seconds that do not count
GROWTH = 0.05  # that is allowed after it
SETTINGS = {
    "train.rounds": 100_000,
    "train.timeout": 120.0,
    "train.evaluate-every": 10,
    "train.checkpoint-every": 10,
}
# What a process is, by a word of its command line.
ROLES = {
    "flower-superlink": "SuperLink",
    "flower-supernode": "SuperNode",
    "flwr-serverapp": "server app",
    "flwr-clientapp": "client app",
    "flower-superexec": "executor",
}
Sample = tuple[float, int, int, int]  # seconds, RSS, PSS, open files


def main() -> None:
    """Run the soak, show it and write its file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="soak-")) / "f"
    result = soak(folder, arguments.minutes * 60)
    columns = ("process", "rss_mib", "rss_mib_growth", "pss_mib_growth", "fds")
    columns += ("fds_growth", "flat")
    show({**result, "rows": [{c: row[c] for c in columns} for row in result["rows"]]})
    save(result, arguments.out)


def soak(folder: Path, seconds: float) -> dict[str, Any]:
    """Train for some time and return how memory and handles went."""
    config = Config().with_values(SETTINGS)
    samples: dict[str, list[Sample]] = defaultdict(list)
    with federation(folder, CLIENTS, config) as made:
        run = folder / "run"
        run_id = made.submit(run, resume=False)
        begin = _await_first_round(run)
        while (now := time.monotonic() - begin) < seconds:
            made.tend()
            _sample(made, samples, now)
            time.sleep(EVERY)
        status = made.status(run_id)
        restarts = {n: one.starts - 1 for n, one in made.services.items()}
        database = (folder / "state.db").stat().st_size
    write_text(folder / "samples.json", json.dumps(samples))
    finished = RunFolder(run).metrics()
    return {
        "name": "soak",
        "rows": [_row(name, found) for name, found in sorted(samples.items())],
        "minutes": seconds / 60,
        "rounds": len(finished),
        "seconds_per_round": statistics.median(row["seconds"] for row in finished),
        "failures": sum(row["failures"] for row in finished),
        "accuracy": _last_accuracy(finished),
        "status_at_the_end": status,
        "restarts": sum(restarts.values()),
        "state_db_mib": database / 2**20,
    }


def _last_accuracy(rows: list[dict[str, Any]]) -> float | None:
    found = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None]
    return found[-1] if found else None


def _await_first_round(run: Path, seconds: float = 300.0) -> float:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if RunFolder(run).metrics():
            return time.monotonic()
        if failure := RunFolder(run).failure():
            raise failure
        time.sleep(1.0)
    raise RuntimeError("no round was finished")


def _sample(made: Federation, samples: dict[str, list[Sample]], now: float) -> None:
    for service in made.services.values():
        for process in service.family():
            with contextlib.suppress(psutil.Error):
                role = _role(process)
                if role is None:
                    continue
                memory = process.memory_full_info()
                found = (now, memory.rss, memory.pss, process.num_fds())
                place = "" if role == "server app" else f" ({service.name})"
                samples[role + ("" if role == "SuperLink" else place)].append(found)


def _role(process: psutil.Process) -> str | None:
    line = " ".join(process.cmdline())
    return next((role for word, role in ROLES.items() if word in line), None)


def _row(name: str, found: Sequence[Sample]) -> dict[str, Any]:
    """Compare the first third of the time that counts with the last third, by means.

    A single minute holds a dozen samples of numbers that go up and down with every
    round; `..._minute` compares the medians of the first and the last one all the same.
    """
    end = found[-1][0]
    start = min(WARM_UP, end / 2)
    counted = [one for one in found if one[0] >= start]
    third = max(1, len(counted) // 3)
    minutes = (
        [one for one in counted if one[0] < start + 60],
        [one for one in counted if one[0] > end - 60],
    )
    row: dict[str, Any] = {"process": name}
    for place, key, unit in (
        (1, "rss_mib", 2**20),
        (2, "pss_mib", 2**20),
        (3, "fds", 1),
    ):
        early = statistics.fmean(one[place] for one in counted[:third])
        late = statistics.fmean(one[place] for one in counted[-third:])
        first, last = (statistics.median(one[place] for one in m) for m in minutes)
        row[key] = early / unit
        row[f"{key}_growth"] = late / early - 1
        row[f"{key}_growth_minute"] = last / first - 1
        row[f"{key}_peak"] = max(one[place] for one in found) / unit
    growth = max(row[f"{key}_growth"] for key in ("rss_mib", "pss_mib", "fds"))
    # A client app lives for one message: its memory has no time to grow.
    lives = not name.startswith("client app")
    row["flat"] = growth < GROWTH if lives else "one a message"
    return row


if __name__ == "__main__":
    main()
