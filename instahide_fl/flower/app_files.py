"""Find the Flower app's files: clients/, server/ and pyproject.toml.

In a checkout they lie beside the library; a wheel carries them inside it, in a folder
that cannot be imported.
"""

from __future__ import annotations

from pathlib import Path

import instahide_fl
from instahide_fl.errors import EngineError

LIBRARY = Path(instahide_fl.__file__).resolve().parent
APP_FILES = "app-files"  # in a wheel


def app_root() -> Path:
    """Return the folder that holds clients/, server/ and pyproject.toml.

    Raises:
        EngineError: The installation lacks them.
    """
    for root in (LIBRARY.parent, LIBRARY / APP_FILES):
        if (root / "clients" / "app.py").is_file() and (
            root / "pyproject.toml"
        ).is_file():
            return root
    raise EngineError(
        f"the Flower app (clients/, server/) is missing beside {LIBRARY}: install "
        f"instahide-fl again"
    )
