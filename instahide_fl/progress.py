"""Shows long work while it goes: a run, or the building of a pool.

A run is followed by the lines that the server adds to metrics.jsonl: the same for every
engine, because the run folder is all it looks at.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

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


class RunProgress:
    """Shows a run's progress for as long as the context lasts.

    Args:
        folder: the run to follow.
        rounds: how many it will have.
        console: where to draw.
    """

    def __init__(self, folder: RunFolder, rounds: int, console: Console) -> None:
        self._folder, self._rounds, self._console = folder, rounds, console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._bar = _bar(console, "accuracy", "pace")
        self._task = self._bar.add_task(
            "starting clients", total=rounds, accuracy="", pace=""
        )
        self._shown = 0

    def __enter__(self) -> RunProgress:
        self._bar.start()
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
        self._bar.stop()

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._show()

    def _show(self) -> None:
        rows = self._folder.metrics()
        if len(rows) <= self._shown:
            return
        accuracy = _latest_accuracy(rows)
        done = int(rows[-1]["round"])
        self._bar.update(
            self._task,
            description=f"round {done}/{self._rounds}",
            completed=done,
            accuracy=accuracy,
            pace=f"{_clients_a_second(rows):,.0f} clients/s",
        )
        step = max(1, self._rounds // LINES)
        if not self._console.is_terminal and done // step > self._shown // step:
            self._console.print(
                f"round {done}/{self._rounds}  {accuracy}  "
                f"{rows[-1]['seconds']:.2f} s a round, "
                f"{_clients_a_second(rows):,.0f} clients/s"
            )
        self._shown = len(rows)


class BuildProgress:
    """Shows how far a pool is built, for as long as the context lasts.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = _bar(console, "kept", "pace")
        self._task = self._bar.add_task("listing images", total=None, kept="", pace="")
        self._start: tuple[int, float] | None = None
        self._lines = 0

    def __enter__(self) -> BuildProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, kept: int) -> None:
        """Show new counts.

        Args:
            done: images cut.
            total: images in all.
            kept: patches that passed the filter.
        """
        # What an earlier command did is not this one's pace.
        first, since = self._start = self._start or (done, time.monotonic())
        pace = (done - first) / max(time.monotonic() - since, 1e-9)
        passed, speed = f"{kept:,} patches", f"{pace:,.0f} images/s"
        self._bar.update(
            self._task,
            description="cutting images" if done < total else "writing the pool",
            total=total,
            completed=done,
            kept=passed,
            pace=speed,
        )
        if not self._console.is_terminal and done * LINES // total > self._lines:
            self._lines = done * LINES // total
            self._console.print(f"{done:,}/{total:,} images  {passed}  {speed}")


@contextlib.contextmanager
def steps_bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar for work of known length; off a terminal, a line now and then.

    Args:
        console: where to draw.
        what: is going on.

    Yields:
        A function to call with steps done and steps in all.
    """
    with _bar(console) as bar:
        task = bar.add_task(what, total=None)
        start = said = time.monotonic()

        def advance(done: int, total: int) -> None:
            nonlocal said
            bar.update(task, completed=done, total=total)
            now = time.monotonic()
            if not console.is_terminal and now - said > QUIET_SECONDS:
                said = now
                console.print(f"{what}: {done / total:.0%} after {now - start:.0f} s")

        yield advance


def _bar(console: Console, *fields: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}") for name in fields),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _clients_a_second(rows: list[dict[str, Any]]) -> float:
    """Return the pace of the latest rounds, evaluation left out."""
    latest = rows[-RECENT:]
    seconds = sum(row["seconds"] - row["evaluation_seconds"] for row in latest)
    return float(sum(row["clients"] for row in latest) / max(seconds, 1e-9))


def _latest_accuracy(rows: list[dict[str, Any]]) -> str:
    known = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None]
    return f"accuracy {known[-1]:.1%}" if known else ""
