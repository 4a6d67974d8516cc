"""Spreads the cutting of a pool over processes, a chunk of images at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import TypeAlias

from instahide_fl.data.pool_patches import (
    CutReport,
    PoolBuildOptions,
    cut_chunk,
    read_report,
    start_cutting,
)
from instahide_fl.errors import EngineError

CHUNK_IMAGES = 64
CHUNK_BYTES = 2**24  # of patches: large patches make smaller chunks

Progress: TypeAlias = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Chunk:
    """Images that are cut together, and the file that holds their patches."""

    names: Sequence[str]
    path: Path


def divide(names: Sequence[str], options: PoolBuildOptions, work: Path) -> list[Chunk]:
    """Divide a listing into chunks of bounded size.

    Args:
        names: paths of images relative to the source.
        options: how they will be cut.
        work: folder of the chunks' files.
    """
    patch = options.crops * options.channels * options.size**2
    step = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // patch))
    return [
        Chunk(names[start : start + step], work / f"chunk-{start:09d}.npz")
        for start in range(0, len(names), step)
    ]


def cut_all(
    source: Path,
    chunks: Sequence[Chunk],
    options: PoolBuildOptions,
    jobs: int,
    progress: Progress | None,
) -> CutReport:
    """Cut the chunks that are not there yet, and add up what became of all images.

    Args:
        source: top of the image tree.
        chunks: of the whole listing.
        options: how to cut.
        jobs: processes.
        progress: called with images done, images in all, and patches kept.

    Raises:
        OutputError: a chunk cannot be written.
        EngineError: a worker process died.
    """
    reports = {chunk.path: read_report(chunk.path) for chunk in chunks}
    missing = [chunk for chunk in chunks if reports[chunk.path] is None]
    total = sum(len(chunk.names) for chunk in chunks)
    done = sum((found for found in reports.values() if found), CutReport())
    images, kept = done.images, done.patches_kept
    if progress:
        progress(images, total, kept)
    # Closed here: if `progress` raises, no worker outlives this function.
    with contextlib.closing(_cut_missing(source, missing, options, jobs)) as cut:
        for path, report in cut:
            reports[path] = report
            images, kept = images + report.images, kept + report.patches_kept
            if progress:
                progress(images, total, kept)
    # In order of the chunks, so that always the same failures are named.
    return sum((found for found in reports.values() if found), CutReport())


def _cut_missing(
    source: Path, chunks: Sequence[Chunk], options: PoolBuildOptions, jobs: int
) -> Generator[tuple[Path, CutReport], None, None]:
    if not chunks:
        return
    with _workers(min(jobs, len(chunks))) as executor:
        running: dict[Future[CutReport], Path] = {}
        for chunk in chunks:
            # A submit may start a process, which half started nobody would end.
            with _interrupts_deferred():
                future = executor.submit(
                    cut_chunk, source, chunk.names, options, chunk.path
                )
            running[future] = chunk.path
            # No more in the queue than keeps every process busy.
            while len(running) >= 2 * jobs:
                yield from _finished(running)
        while running:
            yield from _finished(running)


def _finished(
    running: dict[Future[CutReport], Path],
) -> Iterator[tuple[Path, CutReport]]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        yield running.pop(future), future.result()


@contextlib.contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Give worker processes that end with the block, whatever ends it."""
    _start_server()
    context = multiprocessing.get_context("forkserver")
    receiving, alive = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(jobs, context, start_cutting, (receiving,))
    try:
        yield executor
        executor.shutdown()
    except BrokenProcessPool:
        raise EngineError(
            "a worker process died, perhaps for want of memory: the same command "
            "continues the build; a smaller --jobs needs less memory"
        ) from None
    finally:
        # Closed first: workers leave at once, not when their chunk is done.
        alive.close()
        executor.shutdown(cancel_futures=True)
        receiving.close()


def _start_server() -> None:
    """Start the process that workers are forked from, deaf to Ctrl-C.

    A Ctrl-C in the terminal reaches all processes; only the command's own answers.
    Workers share what the server has loaded.
    """
    # None of our own modules: the server may not have this process's module path.
    multiprocessing.set_forkserver_preload(["numpy", "cv2", "PIL.Image"])
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM, where they arrive meanwhile, count after the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for arrived in caught:
        signal.raise_signal(arrived)
