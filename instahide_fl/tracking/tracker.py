"""What a tracker is told of a run, whichever it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from instahide_fl.errors import ConfigError

State: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Shows a run somewhere else. Nothing is read back from it."""

    def log_round(self, row: Mapping[str, Any]) -> None:
        """Show a round, as metrics.jsonl has it."""

    def log_results(
        self,
        name: str,
        figures: Mapping[str, float],
        files: Sequence[Path],
        step: int,
    ) -> None:
        """Show figures and pictures that belong together, in place of earlier ones.

        Args:
            name: of them all, for instance "attacks/first_layer".
            figures: by name.
            files: PNG files, and others that a tracker may keep.
            step: the round that they belong to.
        """

    def close(self, state: State | None) -> None:
        """Write what is left; a state says how the training ended."""


def round_figures(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a round's numbers by the names of metrics.jsonl; tables get a slash.

    What was not measured in the round is left out.
    """
    return dict(_numbers(row))


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and f"{prefix}{name}" != "round":
            yield f"{prefix}{name}", float(value)


def require(package: str, setting: str, extra: str) -> None:
    """Refuse a setting whose package is not installed.

    Args:
        package: as it is imported.
        setting: that needs it.
        extra: of instahide-fl, which installs it.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{setting} needs the package {package}: "
            f"pip install 'instahide-fl[{extra}]', or leave the setting out"
        )
