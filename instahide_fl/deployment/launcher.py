"""Stand in for Flower's `flwr-clientapp`, and check an app's code before it runs.

For each message a SuperNode starts `flwr-clientapp`, which unpacks the app that the
server sent and runs it. A deployed client puts this launcher first on the SuperNode's
PATH. It belongs to the client's own installation: an app that is not the one pinned in
client.toml is refused before it is unpacked, and the server is told so.

Flower (1.41 and 1.42) has no hook for this, so two functions of its module
`flwr.supernode.runtime.run_clientapp` are replaced:

- `install_from_fab`, which unpacks the archive that was checked, into a folder of this
  process alone. Flower's own folder would hold apps of earlier runs, too.
- `get_load_client_app_fn`, which would load whatever app the server names. The
  replacement loads the app from that folder.

If another version of Flower lacks one of them, the launcher refuses to start anything.
If it has both but calls them with other arguments, the task ends in an error.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from instahide_fl.deployment.app_hash import app_hash_of_archive
from instahide_fl.deployment.policy import check_code, read_policy
from instahide_fl.errors import ConfigError, EngineError
from instahide_fl.wire.refusals import public_error

CLIENT_FOLDER = "INSTAHIDE_FL_CLIENT"  # the SuperNode's environment variable
UNPACKED = "unpacked-"  # begins the name of each process's folder
REPLACED = ("install_from_fab", "get_load_client_app_fn")


def main() -> None:
    """Run one message's task, if its app is the pinned one."""
    folder = Path(os.environ[CLIENT_FOLDER])
    home = tempfile.mkdtemp(prefix=UNPACKED, dir=folder / "state")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["FLWR_HOME"] = home
    from instahide_fl.flower.client_process import flwr_clientapp, run_clientapp

    guard(run_clientapp, folder)
    flwr_clientapp()


def guard(module: Any, folder: Path) -> None:
    """Let a module of Flower's run the pinned app only.

    Args:
        module: Flower's module that unpacks and loads apps; two of its functions are
            replaced.
        folder: The client's folder.

    Raises:
        EngineError: The module lacks these functions.
    """
    if missing := [name for name in REPLACED if not hasattr(module, name)]:
        raise EngineError(
            f"this version of Flower has no {' and no '.join(missing)}, in whose place "
            f"apps are checked: install the version that instahide-fl asks for"
        )
    install, loading = (getattr(module, name) for name in REPLACED)
    unpacked: list[Path] = []

    def install_checked(archive: bytes, *arguments: Any, **options: Any) -> Path:
        with _without_details(folder):
            check_code(read_policy(folder), app_hash_of_archive(archive))
            _forget_own_modules()
            unpacked.append(Path(install(archive, *arguments, **options)))
        return unpacked[-1]

    def load_checked(*_: Any, **__: Any) -> Callable[..., Any]:
        # Not the app that the server names, but the one that was checked. `multi_app`
        # makes Flower compare the name that the server sent with the app's own.
        app = str(unpacked[-1])
        with _without_details(folder):
            load: Callable[..., Any] = loading(
                default_app_ref="", app_path=app, multi_app=True
            )
        return load

    module.install_from_fab = install_checked
    module.get_load_client_app_fn = load_checked


@contextlib.contextmanager
def _without_details(folder: Path) -> Iterator[None]:
    """Let the server read codes only; texts, which may name files, stay here.

    Raises:
        RefusedError: anything was raised.
    """
    try:
        yield
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        name = ""
        with contextlib.suppress(ConfigError):
            name = read_policy(folder).name
        raise public_error(name, error) from None


def remove_unpacked(state: Path) -> None:
    """Remove the unpacked apps of processes that were killed.

    Args:
        state: The folder of the client's state.
    """
    for folder in state.glob(f"{UNPACKED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _forget_own_modules() -> None:
    """Let the app import its own copy of this library, not the one of this process."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "instahide_fl":
            del sys.modules[name]


if __name__ == "__main__":
    main()
