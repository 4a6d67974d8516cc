"""The Ray engine against stock Flower simulation, both with the same apps.

Every run is a process of its own, `instahide-fl run`, and its figures are those of its
metrics.jsonl: seconds of a round without evaluation, the first round left out.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.reporting import run_and_save
from instahide_fl import MixingPool

COMMAND = (sys.executable, "-c", "from instahide_fl.cli import main; main()", "run")
MARK = "INSTAHIDE_FL_BENCHMARK"  # an environment variable that marks a run's processes
NEVER = 1_000_000  # more rounds than any run has
EMPTY = {
    "train.mode": "update",
    "train.local-epochs": 0,
    "train.evaluate-every": NEVER,
    "train.checkpoint-every": NEVER,
}
TWO_MEGABYTES = {"model.name": "small-cnn", "model.width": 40}
RESNET = {"model.name": "resnet-18", "model.normalization": "group"}
RESNET_9 = {"model.name": "resnet-9", "model.width": 32, "model.normalization": "group"}
REFERENCE = {
    "data.dataset": "noise:50000x3x32x32",
    "data.augment": "none",
    "partition.num-clients": 1000,
    "model.name": "cnn-dropout",
    "instahide.method": "none",
    "train.mode": "update",
    "train.clients-per-round": 50,
    "train.batch-size": 10,
    "train.learning-rate": 0.1,
    "train.evaluate-every": NEVER,
    "train.checkpoint-every": NEVER,
}


@dataclass
class Measured:
    """Figures of one run.

    Memory is watched only where it is asked for, because that slows the run down.

    Attributes:
        first_round: Seconds of the first round.
        later_rounds: Median seconds of the other rounds.
        server_memory: Peak memory of the server's process in MB, with its part of
            shared pages; 0 if memory was not watched.
        total_memory: Peak memory of all the run's processes in MB, shared pages counted
            once; 0 if memory was not watched.
        evaluation: Median seconds of the evaluations, without the first; 0 if there
            were fewer than two.
    """

    first_round: float
    later_rounds: float
    server_memory: float
    total_memory: float
    evaluation: float = 0.0


def overhead() -> dict[str, Any]:
    """Measure the cost of the engines themselves: clients that train nothing.

    Ours runs before and after the other, because the machine's own speed drifts.
    """
    rows = []
    for clients, model, name, rounds in (
        (10, TWO_MEGABYTES, "2 MB", (100, 20)),
        (100, TWO_MEGABYTES, "2 MB", (100, 10)),
        (1000, TWO_MEGABYTES, "2 MB", (20, 4)),
        (100, RESNET, "45 MB (ResNet-18)", (12, 4)),
    ):
        settings = {**EMPTY, **model, "partition.num-clients": clients}
        before = measure("ray", {**settings, "train.rounds": rounds[0]})
        stock = measure("flower", {**settings, "train.rounds": rounds[1]})
        after = measure("ray", {**settings, "train.rounds": rounds[0]})
        ours = (before.later_rounds + after.later_rounds) / 2
        rows.append(
            {
                "clients": clients,
                "model": name,
                "flower, s a round": stock.later_rounds,
                "ray, s a round": ours,
                "ratio": stock.later_rounds / ours,
                "flower, first round": stock.first_round,
                "ray, first round": max(before.first_round, after.first_round),
            }
        )
    return {"name": "engine-overhead", "rows": rows}


def server_memory(clients: int = 100) -> dict[str, Any]:
    """Measure the server's memory with ResNet-18: Flower's FedAvg, and ours twice."""
    settings = {**EMPTY, **RESNET, "partition.num-clients": clients}
    runs = {
        "Flower's FedAvg on stock Flower": measure_program(
            [sys.executable, "-m", "benchmarks.stock_fedavg", str(clients), "3"],
            read=lambda output: json.loads(output.strip().splitlines()[-1]),
            is_over=lambda: False,
        ),
        "our apps on stock Flower": measure(
            "flower", {**settings, "train.rounds": 3}, watch=True
        ),
        "our apps on ray": measure("ray", {**settings, "train.rounds": 8}, watch=True),
    }
    rows = [
        {
            "run": name,
            "server MB": run.server_memory,
            "all MB": run.total_memory,
            "s a round": run.later_rounds,
        }
        for name, run in runs.items()
    ]
    return {"name": "server-memory", "rows": rows}


def workload(rounds: int = 6) -> dict[str, Any]:
    """Measure the reference workload of federated simulators, plain and encoded."""
    plain = {**REFERENCE, "train.rounds": rounds}
    # The same network in both rows.
    same = {"model.sign-invariant": False}
    hidden = {**plain, **same, "instahide.method": "instahide"}
    stock = measure("flower", plain)
    runs = {"plain": [], "instahide": []}  # type: dict[str, list[Measured]]
    for _ in range(3):
        runs["plain"].append(measure("ray", plain))
        runs["instahide"].append(measure("ray", hidden))
    ours, encoded = (
        statistics.median(run.later_rounds for run in runs[name])
        for name in ("plain", "instahide")
    )
    round_seconds = {
        "flower, plain": stock.later_rounds,
        "ray, plain": ours,
        "ray, instahide k=4": encoded,
    }
    rows = [
        {"run": name, "s a round": seconds, "to ray, plain": seconds / ours}
        for name, seconds in round_seconds.items()
    ]
    return {"name": "reference-workload", "rows": rows}


def evaluation(rounds: int = 4) -> dict[str, Any]:
    """Measure the evaluation of the reference workload's 10,000 test images.

    Engine inline evaluates on one thread of the server, as all engines once did.
    """
    settings = {
        **REFERENCE,
        "train.rounds": rounds,
        "train.clients-per-round": 2,
        "train.evaluate-every": 1,
    }
    rows: list[dict[str, Any]] = []
    for network, changes in (
        ("cnn-dropout", {}),
        ("resnet-9, width 32", RESNET_9),
    ):
        alone = 0.0
        for engine, workers in (("inline", 1), ("ray", 1), ("ray", 2)):
            workplaces = {"resources.workers": workers}
            run = measure(engine, {**settings, **changes, **workplaces})
            alone = alone or run.evaluation
            rows.append(
                {
                    "network": network,
                    "run": engine if engine == "inline" else f"ray, workers: {workers}",
                    "s an evaluation": run.evaluation,
                    "to inline": run.evaluation / alone,
                }
            )
    return {"name": "evaluation", "rows": rows}


def memory(images: int = 1_281_167) -> dict[str, Any]:
    """Measure the memory of each further worker, with a pool as large as ImageNet."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pool = generated_pool(Path(folder), images)
        settings = {
            "data.dataset": "noise:50000x3x32x32",
            "model.name": "cnn-dropout",
            "partition.num-clients": 100,
            "train.rounds": 5,
            "train.evaluate-every": NEVER,
            "pool.source": str(pool.folder),
        }
        for workers in (1, 4, 8):
            settings["resources.workers"] = workers
            run = measure("ray", settings, watch=True)
            rows.append({"workers": workers, "all MB": run.total_memory})
    first = rows[0]["all MB"]
    for row in rows:
        added = (row["all MB"] - first) / max(1, row["workers"] - 1)
        row["MB for each further worker"] = added
    size = pool.images.nbytes / 1e6
    return {"name": "worker-memory", "rows": rows, "pool, MB": size}


def generated_pool(folder: Path, images: int) -> MixingPool:
    """Write a pool of random images, a block at a time."""
    rng = np.random.default_rng(0)
    shape = (images, 3, 32, 32)
    mapped = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    for start in range(0, images, 10_000):
        block = mapped[start : start + 10_000]
        block[:] = rng.integers(0, 256, block.shape, dtype=np.uint8)
    pool = MixingPool.from_images(torch.from_numpy(mapped), "random numbers")
    return pool.save(folder / "pool")


def measure(engine: str, settings: Mapping[str, Any], watch: bool = False) -> Measured:
    """Run once and read its figures.

    Args:
        engine: Name of the engine.
        settings: The run's settings by dotted name.
        watch: Whether to measure memory too, as long as rounds go on.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        assignments = [f"--set={key}={value}" for key, value in settings.items()]

        def rows() -> list[dict[str, Any]]:
            lines = (out / "metrics.jsonl").read_text().splitlines()
            return [json.loads(line) for line in lines]

        def read(_: str) -> list[float]:
            return [row["seconds"] - row["evaluation_seconds"] for row in rows()]

        command = [*COMMAND, "--engine", engine, "--out", str(out), *assignments]
        # When processes end, the pages that they shared count in full for those left.
        is_over = (out / "summary.json").exists if watch else None
        measured = measure_program(command, read, is_over)
        evaluations = [
            row["evaluation_seconds"]
            for row in rows()
            if row["test_accuracy"] is not None
        ]
        if len(evaluations) > 1:
            measured.evaluation = statistics.median(evaluations[1:])
        return measured


def measure_program(
    command: Sequence[str],
    read: Callable[[str], Sequence[float]],
    is_over: Callable[[], bool] | None,
) -> Measured:
    """Run a program and watch its memory.

    Args:
        command: The program's command line.
        read: a function from the program's output to the seconds of its rounds.
        is_over: a function that tells when to stop watching its memory; None not to
            watch it.
    """
    mark = secrets.token_hex(8)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, MARK: mark},
        )
        with MemoryWatch(process.pid, mark, is_over or (lambda: True)) as memory:
            output, _ = process.communicate()
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)}: {errors.read()}")
    seconds = read(output)
    return Measured(
        first_round=seconds[0],
        later_rounds=statistics.median(seconds[1:]),
        server_memory=memory.server,
        total_memory=memory.total,
    )


class MemoryWatch(threading.Thread):
    """Samples the memory of a run's processes twice a second.

    Args:
        pid: Process id of `instahide-fl run`.
        mark: Value of the environment variable `MARK` in all its processes.
        is_over: a function that tells when to stop.

    Attributes:
        server: Peak memory of the server's process, in MB.
        total: Peak memory of all processes, in MB.
    """

    def __init__(self, pid: int, mark: str, is_over: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.server = self.total = 0.0
        self._pid, self._mark, self._is_over = pid, mark, is_over
        self._stopped = threading.Event()

    def __enter__(self) -> MemoryWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """Sample until the context ends."""
        while not self._is_over() and not self._stopped.wait(0.5):
            total = 0.0
            for process in psutil.process_iter():
                try:
                    if process.environ().get(MARK) != self._mark:
                        continue
                    command = " ".join(process.cmdline())
                    size = process.memory_full_info().pss / 1e6
                    total += size
                    if process.pid == self._pid or "flwr-simulation" in command:
                        self.server = max(self.server, size)
                except psutil.Error:
                    continue
            self.total = max(self.total, total)


if __name__ == "__main__":
    for benchmark in (overhead, server_memory, workload, evaluation, memory):
        run_and_save(benchmark)
