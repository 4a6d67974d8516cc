"""Commands in processes of their own, without waiting seconds for their imports.

They are forked from a process that has imported the library and done nothing else. The
operating system sees no difference: such a process can be killed, limited or starved.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from dataclasses import dataclass

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "instahide_fl.cli.run", "instahide_fl.engine.inline"]
)


@dataclass(frozen=True)
class Ended:
    """What is known of a process that ended.

    Attributes:
        returncode: The exit code, or the negative number of the signal that killed it.
        stdout: What it wrote.
        stderr: What it wrote of errors.
    """

    returncode: int
    stdout: str
    stderr: str


def run_command(folder, *arguments, prepare=None, seconds=120):
    """Run `instahide-fl` to its end.

    Args:
        folder: An existing folder, for what it prints.
        arguments: Those of the command line.
        prepare: What the process does first; a function of a module, or a partial one.
        seconds: How long it may take.
    """
    paths = [folder / "stdout.txt", folder / "stderr.txt"]
    process = _CONTEXT.Process(
        target=_call, args=(paths, list(map(str, arguments)), prepare)
    )
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    return Ended(process.exitcode, *(path.read_text() for path in paths))


def _call(paths, arguments, prepare):
    for path, number in zip(paths, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    # The process that this one was forked from may have been started without any.
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
    code = 1
    try:
        if prepare is not None:
            prepare()
        from instahide_fl.cli import main

        sys.argv = ["instahide-fl", *arguments]
        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    sys.exit(code)
