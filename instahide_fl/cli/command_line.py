"""Run the command line to its exit code: of errors, interruptions, and success."""

from __future__ import annotations

import io
import os
import signal
import sys

from instahide_fl.environment import safe_imports
from instahide_fl.errors import InstaHideError
from instahide_fl.interrupts import (
    InterruptWatch,
    Terminated,
    is_ignored,
    watched_interrupts,
)
from instahide_fl.terminal import printable

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def run_command_line() -> int:
    """Run the command of `sys.argv`; turn errors into one line and a code.

    Returns:
        The exit code.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold bytes that are no text, and stopping at one helps nobody.
        sys.stdout.reconfigure(errors="backslashreplace")
    code = 0
    with safe_imports(), watched_interrupts() as watch:
        try:
            from instahide_fl.cli.commands import app

            app()
        except BaseException as error:
            code = _exit_code(error, watch)
    if not is_ignored(signal.SIGINT):
        # What follows is tidying up, which Ctrl-C ends without a word.
        signal.signal(signal.SIGINT, lambda *_: os._exit(code or INTERRUPTED))
    return code


def _exit_code(error: BaseException, watch: InterruptWatch) -> int:
    """Print the line of an error or interruption and return the exit code.

    Raises:
        BaseException: The error is another, which nobody foresaw.
    """
    if isinstance(error, SystemExit) and error.code in (0, None):
        if not watch.interrupted:
            return 0
        # The interrupt was swallowed, or the command ended before it could be raised.
        error = KeyboardInterrupt()
    interruption = _interruption(error)
    if watch.interrupted or interruption is not None:
        # Libraries turn Ctrl-C into other errors, above all while they are loaded.
        line = interruption.args if interruption else ()
        print(*(line or ("interrupted",)), file=sys.stderr, flush=True)
        return TERMINATED if isinstance(interruption, Terminated) else INTERRUPTED
    if isinstance(error, InstaHideError):
        from instahide_fl.cli.common import errors

        lines = f"error: {error}".split("\n")
        errors.print("\n".join(map(printable, lines)))
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    raise error


def _interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interruption that an exception came from; None for another cause."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error
