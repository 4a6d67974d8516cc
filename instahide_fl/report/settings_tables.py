"""Tables of what runs were made with: settings, and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from instahide_fl.report.data_table import DataTable
from instahide_fl.report.results import Member, Run, Study
from instahide_fl.report.without_folders import setting_without_folders


def settings(study: Study) -> list[DataTable]:
    """Return the settings that differ between runs, and those that all share."""
    configs = [
        (member, member.run.config.to_run_config())
        for member in study.members
        if member.run
    ]
    if not configs:
        return []
    names = [name for name in configs[0][1] if not name.startswith("output.")]
    values = {name: [config.get(name) for _, config in configs] for name in names}
    shared = [name for name in names if len(set(map(repr, values[name]))) == 1]
    tables = []
    if len(configs) > 1 and len(shared) < len(names):
        differing = [name for name in names if name not in shared]
        tables.append(_differing(configs, differing))
    frame = pd.DataFrame(
        [(name, _as_text(values[name][0])) for name in shared],
        columns=["setting", "value"],
    )
    title = "Settings that all runs share" if len(configs) > 1 else "Settings"
    tables.append(DataTable("settings", title, "", frame, folded=True))
    return tables


def _differing(
    configs: Sequence[tuple[Member, Mapping[str, Any]]], names: list[str]
) -> DataTable:
    """Return the settings of each variant in a column of its own, seeds aside."""
    columns: dict[str, list[str]] = {}
    for member, config in configs:
        label = ", ".join([member.method, *map(str, member.axes.values())])
        columns.setdefault(label, [_as_text(config.get(name)) for name in names])
    frame = pd.DataFrame({"setting": names, **columns})
    note = ""
    if len(columns) < len(configs):  # a column stands for several seeds
        frame = frame[frame["setting"] != "seed"]
        seeds = sorted({str(member.seed) for member, _ in configs})
        note = f"Seeds: {', '.join(seeds)}."
    return DataTable("settings-that-differ", "Settings that differ", note, frame)


def _as_text(value: object) -> str:
    return '""' if value == "" else setting_without_folders(str(value))


def provenance(runs: Sequence[Run]) -> DataTable | None:
    """Return what the runs were made with; several values where these differ."""
    by_name: dict[str, list[str]] = {}
    for run in runs:
        for name, value in _flat(run.provenance):
            values = by_name.setdefault(name, [])
            if value not in values:
                values.append(value)
    if not by_name:
        return None
    frame = pd.DataFrame(
        [(name, "; ".join(values)) for name, values in by_name.items()],
        columns=["what", "value"],
    )
    return DataTable("provenance", "Made with", "", frame)


def _flat(provenance: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return names and values in words; tables in it are taken apart."""
    rows = []
    for name, value in provenance.items():
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
