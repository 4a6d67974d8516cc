"""Runs in the place of Flower's `flwr-clientapp`: code is checked before it runs.

For each message a SuperNode starts `flwr-clientapp`, which unpacks the app that the
server sent and runs it. A deployed client puts this launcher first on the SuperNode's
PATH. It belongs to the client's own installation: an app that is not the one pinned in
client.toml is refused before it is unpacked, and the server is told so.

Flower has no hook for this, so that a function of its module is replaced
(`flwr.supernode.runtime.run_clientapp.install_from_fab`, flwr 1.41). If it is not
there any more, the launcher refuses to start anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instahide_fl.deployment.client_policy import check_code, read_policy
from instahide_fl.deployment.code import hash_of_archive
from instahide_fl.errors import EngineError

CLIENT_FOLDER = "INSTAHIDE_FL_CLIENT"  # environment variable of a SuperNode
REPLACED = "install_from_fab"


def main() -> None:
    """Run one message's task, if its app is the pinned one."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    folder = Path(os.environ[CLIENT_FOLDER])
    install = getattr(run_clientapp, REPLACED, None)
    if install is None:
        raise EngineError(
            f"this version of Flower has no {REPLACED}, in whose place apps are "
            f"checked: install the version that instahide-fl asks for"
        )
    setattr(run_clientapp, REPLACED, checked(folder, install))
    flwr_clientapp()


def checked(folder: Path, install: Callable[..., Any]) -> Callable[..., Any]:
    """Return what unpacks an app after it was compared with the client's pin.

    Args:
        folder: of the client.
        install: Flower's function, whose first argument is the archive's bytes.
    """

    def install_checked(archive: Any, *arguments: Any, **options: Any) -> Any:
        content = archive if isinstance(archive, bytes) else Path(archive).read_bytes()
        check_code(read_policy(folder), hash_of_archive(content))
        _forget_own_modules()
        return install(content, *arguments, **options)

    return install_checked


def _forget_own_modules() -> None:
    """Let the app import its own copy of this library, not the one of this process."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "instahide_fl":
            del sys.modules[name]


if __name__ == "__main__":
    main()
