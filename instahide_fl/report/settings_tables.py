"""Tables of what runs were made with: settings, and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from instahide_fl.report.data_table import DataTable
from instahide_fl.report.results import Member, Run, Study


def settings(study: Study) -> list[DataTable]:
    """Return the settings that differ between runs, and those that all share."""
    read = [(one, one.run.config.to_run_config()) for one in study.members if one.run]
    if not read:
        return []
    names = [name for name in read[0][1] if not name.startswith("output.")]
    values = {name: [config.get(name) for _, config in read] for name in names}
    shared = [name for name in names if len(set(map(repr, values[name]))) == 1]
    tables = []
    if len(read) > 1 and len(shared) < len(names):
        tables.append(_differing(read, [name for name in names if name not in shared]))
    frame = pd.DataFrame(
        [(name, _written(values[name][0])) for name in shared],
        columns=["setting", "value"],
    )
    title = "Settings that all runs share" if len(read) > 1 else "Settings"
    tables.append(DataTable("settings", title, "", frame, folded=True))
    return tables


def _differing(
    read: Sequence[tuple[Member, Mapping[str, Any]]], names: list[str]
) -> DataTable:
    """Put each method with its values of the axes into a column, seeds aside."""
    columns: dict[str, list[str]] = {}
    for one, config in read:
        label = ", ".join([one.method, *map(str, one.axes.values())])
        columns.setdefault(label, [_written(config.get(name)) for name in names])
    frame = pd.DataFrame({"setting": names, **columns})
    note = ""
    if len(columns) < len(read):  # a column stands for several seeds
        frame = frame[frame["setting"] != "seed"]
        note = f"Seeds: {', '.join(sorted({str(one.seed) for one, _ in read}))}."
    return DataTable("settings-that-differ", "Settings that differ", note, frame)


def _written(value: object) -> str:
    return '""' if value == "" else str(value)


def provenance(runs: Sequence[Run]) -> DataTable | None:
    """Return what runs were made with; several values where these differ."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for name, value in _flat(run.provenance):
            seen = found.setdefault(name, [])
            if value not in seen:
                seen.append(value)
    if not found:
        return None
    frame = pd.DataFrame(
        [(name, "; ".join(values)) for name, values in found.items()],
        columns=["what", "value"],
    )
    return DataTable("provenance", "Made with", "", frame)


def _flat(told: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in told.items():
        if name == "clients":
            sizes = list(value.values())
            text = f"{len(sizes)}, with {min(sizes)} to {max(sizes)} images"
            rows.append(("clients", text))
        elif isinstance(value, Mapping):
            rows.extend(_flat(value, f"{name} "))
        elif value not in ("", None, []):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((f"{prefix}{name}".replace("_", " "), text))
    return rows
