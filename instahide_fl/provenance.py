"""What a result was made with: code, versions, machine.

`imported_code_hash` is of the code that this process imported. The app hash, which
clients pin, is of the app as it is packed and sent: `deployment.app_hash`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

APP_PACKAGES = ("instahide_fl", "clients", "server")
_PACKAGES = ("instahide-fl", "torch", "numpy", "flwr", "ray", "flwr-datasets")


@lru_cache(maxsize=1)
def imported_code_hash() -> str:
    """Hash the Python files of the library and of the Flower app, as imported here.

    Server and clients compare it at the start of a run, and provenance.json holds it as
    `code_hash`: Flower's default local connection can run another checkout's client
    code without a word. It is taken after the code was loaded and leaves pyproject.toml
    out; the app hash (`deployment.app_hash`) is taken before and covers it.

    Returns:
        The sha256, in hex.
    """
    hasher = hashlib.sha256()
    for package in APP_PACKAGES:
        folder = _package_folder(package)
        for path in sorted(folder.rglob("*.py")) if folder else []:
            name = path.relative_to(folder.parent).as_posix() if folder else ""
            if "/app-files/" not in name:  # a wheel's copy of clients/ and server/
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                hasher.update(f"{name} {content}\n".encode())
    return hasher.hexdigest()


def describe_environment() -> dict[str, Any]:
    """Return versions, platform and devices as plain values for JSON."""
    return {
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "gpus": [
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        ],
        "git_revision": git_revision(Path(__file__).parent),
    }


def git_revision(folder: Path) -> str | None:
    """Return the checkout's revision, marked `-dirty` if files differ from it.

    Args:
        folder: The package's folder in the checkout.

    Returns:
        The revision; None outside a checkout, or where git is not installed.
    """
    command = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    try:
        git = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # A site-packages folder inside somebody else's checkout is not ours to name.
    inside = (folder.parent / "pyproject.toml").exists()
    return git.stdout.strip() or None if git.returncode == 0 and inside else None


def changed_since_start(subject: str, recorded: str, current: str) -> str:
    """Say that something that a run is made from is not what it was.

    Args:
        subject: What changed, with its verb: "the pool has".
        recorded: The digest that the run recorded; empty for none.
        current: The digest by now; empty for none.
    """
    return (
        f"{subject} changed since the run began (digest {recorded[:12] or 'none'}, now "
        f"{current[:12] or 'none'}): bring the earlier ones back, or start a new run"
    )


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))) if locations else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
