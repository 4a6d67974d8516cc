"""Measure a deployment's memory and open files over time: `python -m benchmarks.soak`.

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
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.loopback import Federation, start_federation
from benchmarks.reporting import RESULTS, save, show
from instahide_fl.config import Config
from instahide_fl.files import write_text
from instahide_fl.run_folder import RunFolder

CLIENTS = 3
SAMPLE_SECONDS = 5.0  # between two samples
WARM_UP = 300.0  # seconds that do not count
MAX_GROWTH = 0.05  # after the warm-up, as a fraction
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


class Sample(NamedTuple):
    """The memory and files of a process at one moment.

    Attributes:
        seconds: The time since the first round.
        rss: Resident memory, in bytes.
        pss: Resident memory with a share of what other processes map too, in bytes.
        fds: The number of open files.
    """

    seconds: float
    rss: int
    pss: int
    fds: int


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
    with start_federation(folder, CLIENTS, config) as federation:
        run = folder / "run"
        run_id = federation.submit(run, resume=False)
        begin = _await_first_round(run)
        while (now := time.monotonic() - begin) < seconds:
            federation.tend()
            _sample(federation, samples, now)
            time.sleep(SAMPLE_SECONDS)
        status = federation.status(run_id)
        restarts = sum(service.starts - 1 for service in federation.services.values())
        database = (folder / "state.db").stat().st_size
    write_text(folder / "samples.json", json.dumps(samples))
    rounds = RunFolder(run).metrics()
    return {
        "name": "soak",
        "rows": [_row(name, taken) for name, taken in sorted(samples.items())],
        "minutes": seconds / 60,
        "rounds": len(rounds),
        "seconds_per_round": statistics.median(row["seconds"] for row in rounds),
        "failures": sum(row["failures"] for row in rounds),
        "accuracy": _last_accuracy(rounds),
        "status_at_the_end": status,
        "restarts": restarts,
        "state_db_mib": database / 2**20,
    }


def _last_accuracy(rows: list[dict[str, Any]]) -> float | None:
    measured = [row["test_accuracy"] for row in rows]
    accuracies = [accuracy for accuracy in measured if accuracy is not None]
    return accuracies[-1] if accuracies else None


def _await_first_round(run: Path, seconds: float = 300.0) -> float:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if RunFolder(run).metrics():
            return time.monotonic()
        if failure := RunFolder(run).failure():
            raise failure
        time.sleep(1.0)
    raise RuntimeError("no round was finished")


def _sample(
    federation: Federation, samples: dict[str, list[Sample]], now: float
) -> None:
    for service in federation.services.values():
        for process in service.family():
            with contextlib.suppress(psutil.Error):
                role = _role(process)
                if role is None:
                    continue
                memory = process.memory_full_info()
                shared = role in ("SuperLink", "server app")
                name = role if shared else f"{role} ({service.name})"
                files = process.num_fds()
                samples[name].append(Sample(now, memory.rss, memory.pss, files))


def _role(process: psutil.Process) -> str | None:
    line = " ".join(process.cmdline())
    return next((role for word, role in ROLES.items() if word in line), None)


def _row(name: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """Compare the first third of the time that counts with the last third, by means.

    A single minute holds a dozen samples of numbers that go up and down with every
    round; `..._minute` compares the medians of the first and the last one all the same.
    """
    end = samples[-1].seconds
    start = min(WARM_UP, end / 2)
    counted = [sample for sample in samples if sample.seconds >= start]
    third = max(1, len(counted) // 3)
    first_minute = [s for s in counted if s.seconds < start + 60]
    last_minute = [s for s in counted if s.seconds > end - 60]
    row: dict[str, Any] = {"process": name}
    for key, attribute, unit in (
        ("rss_mib", "rss", 2**20),
        ("pss_mib", "pss", 2**20),
        ("fds", "fds", 1),
    ):
        value = attrgetter(attribute)
        early = statistics.fmean(map(value, counted[:third]))
        late = statistics.fmean(map(value, counted[-third:]))
        first = statistics.median(map(value, first_minute))
        last = statistics.median(map(value, last_minute))
        row[key] = early / unit
        row[f"{key}_growth"] = late / early - 1
        row[f"{key}_growth_minute"] = last / first - 1
        row[f"{key}_peak"] = max(map(value, samples)) / unit
    growth = max(row[f"{key}_growth"] for key in ("rss_mib", "pss_mib", "fds"))
    # A client app lives for one message: its memory has no time to grow.
    lives = not name.startswith("client app")
    row["flat"] = growth < MAX_GROWTH if lives else "one a message"
    return row


if __name__ == "__main__":
    main()
