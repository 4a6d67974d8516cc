"""Checks of an installation: versions, disk, cache."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

import instahide_fl
from instahide_fl.deployment.check_results import Finding, bad, good
from instahide_fl.files import cache_folder

SPARE_BYTES = 2**30  # for state, logs and checkpoints
NAMED = ("torch", "flwr", "ray", "numpy")


def check_versions() -> Iterator[Finding]:
    """Compare Python and all packages with what this version asks for."""
    found = ".".join(map(str, sys.version_info[:3]))
    yield (
        good("python", found)
        if sys.version_info >= (3, 11)
        else bad("python", f"{found}: install Python 3.11 or newer")
    )
    wanted = _requirements()
    for name in NAMED:
        yield _version(name, wanted.get(name))
    others = {n: one for n, one in wanted.items() if n not in NAMED}
    faults = [f for n, one in others.items() if not (f := _version(n, one)).ok]
    yield from faults
    if not faults:
        yield good("other packages", f"{len(others)} in range")


def check_disk(folder: Path) -> Iterator[Finding]:
    """Look at the free space of a folder's disk and whether it can be written.

    Args:
        folder: it, or a parent that exists.
    """
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / 2**30:.1f} GiB free at {place}"
    yield (
        good("disk", text)
        if free >= SPARE_BYTES
        else bad("disk", f"{text}: free at least {SPARE_BYTES / 2**30:.0f} GiB")
    )


def check_cache() -> Iterator[Finding]:
    """Look at the cache folder."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".doctor"
    probe.write_bytes(b"")
    probe.unlink()
    yield good("cache", f"{folder} can be written (INSTAHIDE_FL_CACHE)")


def _version(name: str, wanted: Requirement | None) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return bad(name, f"not installed: pip install '{wanted or name}'")
    if wanted is None or wanted.specifier.contains(found, prereleases=True):
        return good(name, found)
    return bad(name, f"{found}: pip install '{wanted.name}{wanted.specifier}'")


def _requirements() -> dict[str, Requirement]:
    """Return what this package needs, by name, and Ray as Flower needs it."""
    wanted = {one.name: one for one in map(Requirement, _declared())}
    try:
        flower = [Requirement(text) for text in requires("flwr") or []]
    except (PackageNotFoundError, InvalidRequirement):
        return wanted
    return wanted | {one.name: one for one in flower if one.name == "ray"}


def _declared() -> list[str]:
    library = Path(instahide_fl.__file__).resolve().parent
    for root in (library.parent, library / "app-files"):
        if (root / "pyproject.toml").is_file():
            project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
            return list(project["dependencies"])
    return []
