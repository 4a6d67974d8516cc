"""Copy the Flower app's files for Flower, or import the app in this process.

What this relies on (flwr 1.41 and 1.42): Flower packs a folder with a pyproject.toml,
whose `tool.flwr.app` names the files and the two apps, and puts the unpacked folder
first on `sys.path`. It leaves out every file named `test_*.py` or `*_test.py`: a module
of the library with such a name would be missing at every client.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from instahide_fl.errors import EngineError
from instahide_fl.flower.app_files import APP_FILES, LIBRARY, app_root


def stage_app(target: Path) -> Path:
    """Copy the app and the library into an empty folder that Flower can package.

    A copy, so that edits during a run do not reach clients that start later.

    Args:
        target: A folder that does not exist yet.

    Returns:
        The folder, with instahide_fl/, clients/, server/ and pyproject.toml.

    Raises:
        EngineError: The installation lacks the app.
    """
    root = app_root()
    ignore = shutil.ignore_patterns("__pycache__", APP_FILES)
    target.mkdir(parents=True)
    shutil.copytree(LIBRARY, target / "instahide_fl", ignore=ignore)
    for package in ("clients", "server"):
        shutil.copytree(root / package, target / package, ignore=ignore)
    shutil.copy(root / "pyproject.toml", target)
    return target


@contextlib.contextmanager
def importable_app() -> Iterator[tuple[ModuleType, ModuleType]]:
    """Import clients.app and server.app in this process, as Flower would.

    Flower's convention makes the names generic, so it is checked that the modules are
    those of this package.

    Yields:
        The modules clients.app and server.app.

    Raises:
        EngineError: Another package of that name was imported before.
    """
    root = app_root()
    sys.path.insert(0, str(root))
    try:
        yield _import_app("clients", root), _import_app("server", root)
    finally:
        sys.path.remove(str(root))


def _import_app(package: str, root: Path) -> ModuleType:
    """Import the app of one of the two packages.

    Raises:
        EngineError: It is another package of that name.
    """
    module = import_module(package)
    # A folder without __init__.py, which may be imported as well, has no file.
    [place, *_] = getattr(module, "__path__", [module.__file__])
    if Path(place).resolve() != root / package:
        raise EngineError(
            f"another package is imported as {package} ({place}), which is the name of "
            f"a part of instahide-fl's app: import that one later, in another process, "
            f"or under another name"
        )
    return import_module(f"{package}.app")
