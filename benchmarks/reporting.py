"""Parts that the benchmarks share: timing in turn, tables, and result files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from instahide_fl.files import write_text
from instahide_fl.provenance import describe_environment

RESULTS = Path(__file__).parent / "results"


def alternate(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Time variants in turn, A B C A B C ..., after one turn that does not count.

    In turn, because the machine's own speed drifts: a drift meets all variants.

    Args:
        variants: Functions to time, by name.
        repeats: Number of turns that count.
        clock: The clock that is read; `time.process_time` counts this process's own
            work only, whatever else the machine does.

    Returns:
        Median seconds by name.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, work in variants.items():
            start = clock()
            work()
            if turn:
                times[name].append(clock() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def show(result: Mapping[str, Any]) -> None:
    """Print a result's rows as a table, and its other figures below."""
    rows = result["rows"]
    table = Table(*rows[0], title=result["name"])
    for row in rows:
        table.add_row(*(format_value(value) for value in row.values()))
    console = Console()
    console.print(table)
    for key, value in result.items():
        if key not in ("name", "rows"):
            console.print(f"{key}: {format_value(value)}")


def save(result: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Write a result with machine and versions to folder/NAME.json."""
    folder.mkdir(exist_ok=True)
    machine = {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
    }
    described = {"machine": machine, **describe_environment(), **result}
    path = folder / f"{result['name']}.json"
    write_text(path, json.dumps(described, indent=2) + "\n")


def run_and_save(run: Callable[[], dict[str, Any]]) -> None:
    """Run one benchmark, show it and write its file."""
    result = run()
    show(result)
    save(result)


def format_value(value: object) -> str:
    """Return a value as tables show it; numbers with three digits."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {format_value(entry)}" for key, entry in value.items())
    return str(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line for line in lines if line.startswith("model name")]
        return names[0].split(":")[1].strip()
    except (OSError, IndexError):
        return platform.processor()
