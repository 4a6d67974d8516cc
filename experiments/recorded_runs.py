"""Simulate recorded runs that are attacked later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from instahide_fl.audit.recorded_run import RecordedRun, open_recorded_run
from instahide_fl.config import Config, Scalar
from instahide_fl.engine.inline import run_inline
from instahide_fl.run_folder import RunFolder


def recorded_run(folder: Path, settings: Mapping[str, Scalar]) -> RecordedRun:
    """Return a recorded run; it is simulated unless its folder is complete.

    Args:
        folder: The run folder.
        settings: The settings that differ from their defaults, by dotted name.
    """
    if not RunFolder(folder).finished:
        values = {**settings, "output.folder": str(folder)}
        config = Config().with_values(values).with_absolute_paths(Path.cwd())
        path = Path(config.output.folder)
        run_inline(config, RunFolder.create(path, config))
    return open_recorded_run(folder)
