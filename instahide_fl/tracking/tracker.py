"""The interface of all trackers of a run."""

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
            name: The name of the results, for instance "attacks/first_layer".
            figures: The figures by name.
            files: The PNG files to show, and other files that a tracker may store.
            step: The round that the results belong to.
        """

    def close(self, state: State | None) -> None:
        """Write what is left.

        Args:
            state: The way in which the training ended; None where none was tracked.
        """


def round_figures(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a round's numbers by the names of metrics.jsonl.

    A name in a table follows the table's, after a slash. Figures that were not measured
    in the round are not there.

    Args:
        row: The line of metrics.jsonl.
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
        package: The name under which it is imported.
        setting: The setting that needs it.
        extra: The extra of instahide-fl that installs it.

    Raises:
        ConfigError: the package is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{setting} needs the package {package}: "
            f"pip install 'instahide-fl[{extra}]', or leave the setting out"
        )
