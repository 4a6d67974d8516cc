"""The command `instahide-fl`.

Exit code 0 only on success, 2 for a user's mistake (one line says what to do), 1 for a
run that failed, 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys

# Nothing else is imported here, so that `main` can answer Ctrl-C from the first moment.


def __getattr__(name: str) -> object:
    """Load the commands when they are first used."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from instahide_fl.cli.commands import app

    return app


def main() -> None:
    """Run the command line and exit; see `cli.command_line`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)
    from instahide_fl.cli.command_line import run_command_line

    sys.exit(run_command_line())


def _leave(*_: object) -> None:
    """Exit at once, as long as there is nothing to tidy up."""
    os.write(2, b"interrupted\n")
    os._exit(130)
