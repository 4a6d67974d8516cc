"""Shows long work while it goes: a run, the building of a pool, or steps.

All of it is shown by `ProgressBar`: a bar on a terminal, and elsewhere a line now and
then. A run is followed by the lines that the server adds to metrics.jsonl: the same for
every engine, because the run folder is all it looks at.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from instahide_fl.run_folder import RunFolder

POLL_SECONDS = 0.25
RECENT = 10  # rounds that the pace is taken from
LINES = 10  # printed over the work where there is no terminal to draw a bar on
QUIET_SECONDS = 30.0  # without a line where there is no terminal


class ProgressBar:
    """Shows how far some work is, for as long as the context lasts.

    Args:
        console: The console to draw on.
        description: What is going on.
        total: The number of steps; None while it is not known.
        columns: The names of further columns, which are texts.
        transient: Whether the bar disappears in the end.
    """

    def __init__(
        self,
        console: Console,
        description: str,
        total: int | None = None,
        columns: Sequence[str] = (),
        transient: bool = False,
    ) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            *(TextColumn(f"{{task.fields[{name}]}}") for name in columns),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=transient,
            disable=not console.is_terminal,
        )
        texts: Any = dict.fromkeys(columns, "")
        self._task = self._bar.add_task(description, total=total, **texts)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(
        self,
        completed: int,
        total: int | None = None,
        description: str | None = None,
        **texts: str,
    ) -> None:
        """Show new counts.

        Args:
            completed: The number of steps that are done.
            total: The number of steps; None leaves it as it is.
            description: What is going on; None leaves it as it is.
            texts: The texts of further columns, by name.
        """
        self._bar.update(
            self._task,
            completed=completed,
            total=total,
            description=description,
            **cast(Any, texts),
        )

    def print_line(self, line: str) -> None:
        """Print a line where there is no terminal to draw a bar on."""
        if not self._console.is_terminal:
            self._console.print(line)


class RunProgress:
    """Shows a run's progress for as long as the context lasts.

    Args:
        folder: The folder of the run to follow.
        rounds: The number of rounds that the run will have.
        console: The console to draw on.
    """

    def __init__(self, folder: RunFolder, rounds: int, console: Console) -> None:
        self._folder, self._rounds = folder, rounds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        columns = ("accuracy", "pace")
        self._console = console
        self._bar = ProgressBar(console, "starting clients", rounds, columns)
        self._rounds_shown = 0

    def __enter__(self) -> RunProgress:
        self._bar.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._show()
        self._bar.__exit__(kind, error, trace)

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._show()

    def _show(self) -> None:
        rows = self._folder.metrics()
        if len(rows) <= self._rounds_shown:
            return
        for row in rows[self._rounds_shown :]:
            self._warn_of_chance(row)
        round_number = int(rows[-1]["round"])
        progress = f"round {round_number}/{self._rounds}"
        accuracy, pace = _latest_accuracy(rows), f"{_clients_a_second(rows):,.0f}"
        self._bar.update(
            round_number,
            description=progress,
            accuracy=accuracy,
            pace=f"{pace} clients/s",
        )
        step = max(1, self._rounds // LINES)
        if round_number // step > self._rounds_shown // step:
            self._bar.print_line(
                f"{progress}  {accuracy}  {_training_seconds(rows[-1]):.2f} s a round, "
                f"{pace} clients/s{_evaluation_time(rows[self._rounds_shown :])}"
            )
        self._rounds_shown = len(rows)

    def _warn_of_chance(self, row: Mapping[str, Any]) -> None:
        """Print a warning where the server found the network at chance."""
        if not row.get("at_chance"):
            return
        # Imported here: pools are built without PyTorch.
        from instahide_fl.evaluation.chance import chance_warning

        bound, config = row["chance_bound"], self._folder.config()
        warning = chance_warning(row["test_accuracy"], bound, config)
        self._console.print(f"round {row['round']}: {warning}", style="yellow")


class BuildProgress:
    """Shows how far a pool is built, for as long as the context lasts.

    Args:
        console: The console to draw on.
    """

    def __init__(self, console: Console) -> None:
        columns = ("patches", "pace")
        self._bar = ProgressBar(console, "listing images", columns=columns)
        self._start: tuple[int, float] | None = None
        self._lines = 0

    def __enter__(self) -> BuildProgress:
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def __call__(self, images: int, total: int, patches: int) -> None:
        """Show new counts.

        Args:
            images: The images cut so far.
            total: The number of images.
            patches: The patches that passed the filter so far.
        """
        # What an earlier command did is not this one's pace.
        first, since = self._start = self._start or (images, time.monotonic())
        pace = (images - first) / max(time.monotonic() - since, 1e-9)
        passed, speed = f"{patches:,} patches", f"{pace:,.0f} images/s"
        self._bar.update(
            images,
            total,
            "cutting images" if images < total else "writing the pool",
            patches=passed,
            pace=speed,
        )
        if images * LINES // total > self._lines:
            self._lines = images * LINES // total
            self._bar.print_line(f"{images:,}/{total:,} images  {passed}  {speed}")


@contextlib.contextmanager
def steps_bar(
    console: Console, description: str, transient: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar for work of known length; off a terminal, a line now and then.

    Args:
        console: The console to draw on.
        description: What is going on.
        transient: Whether the bar disappears in the end.

    Yields:
        A function to call with steps done and steps in all.
    """
    with ProgressBar(console, description, transient=transient) as bar:
        start = printed = time.monotonic()

        def advance(completed: int, total: int) -> None:
            nonlocal printed
            bar.update(completed, total)
            now = time.monotonic()
            if now - printed > QUIET_SECONDS:
                printed = now
                bar.print_line(
                    f"{description}: {completed / total:.0%} after {now - start:.0f} s"
                )

        yield advance


def _training_seconds(row: Mapping[str, Any]) -> float:
    """Return how long a round took, evaluation left out."""
    return float(row["seconds"] - row["evaluation_seconds"])


def _evaluation_time(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how long the latest evaluation among rounds took; nothing without one."""
    seconds = [
        row["evaluation_seconds"] for row in rows if row["test_accuracy"] is not None
    ]
    return f", evaluation {seconds[-1]:.2f} s" if seconds else ""


def _clients_a_second(rows: list[dict[str, Any]]) -> float:
    """Return the pace of the latest rounds, evaluation left out."""
    latest = rows[-RECENT:]
    seconds = sum(_training_seconds(row) for row in latest)
    return float(sum(row["clients"] for row in latest) / max(seconds, 1e-9))


def _latest_accuracy(rows: list[dict[str, Any]]) -> str:
    tested = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None]
    return f"accuracy {tested[-1]:.1%}" if tested else ""
