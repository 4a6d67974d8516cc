"""Check an installation: versions, disk, cache."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

import instahide_fl
from instahide_fl.deployment.check_results import CheckResult, failed, passed
from instahide_fl.files import CACHE_VARIABLE, cache_folder

MIN_FREE_BYTES = 2**30  # for state, logs and checkpoints
LISTED_PACKAGES = ("torch", "flwr", "ray", "numpy")


def check_versions() -> Iterator[CheckResult]:
    """Check that Python and all packages are of the versions that this one needs."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield (
        passed("python", python)
        if sys.version_info >= (3, 11)
        else failed("python", f"{python}: install Python 3.11 or newer")
    )
    requirements = _requirements()
    for name in LISTED_PACKAGES:
        yield _check_version(name, requirements.get(name))
    others = requirements.keys() - set(LISTED_PACKAGES)
    results = [
        _check_version(name, requirement)
        for name, requirement in requirements.items()
        if name in others
    ]
    faults = [result for result in results if not result.ok]
    yield from faults
    if not faults:
        yield passed("other packages", f"{len(others)} in range")


def check_disk(folder: Path) -> Iterator[CheckResult]:
    """Check the free space of the disk that a folder is on.

    Args:
        folder: The folder, which may not exist yet.
    """
    paths = (folder, *folder.absolute().parents)
    existing = next(path for path in paths if path.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / 2**30:.1f} GiB free at {existing}"
    yield (
        passed("disk", text)
        if free >= MIN_FREE_BYTES
        else failed("disk", f"{text}: free at least {MIN_FREE_BYTES / 2**30:.0f} GiB")
    )


def check_cache() -> Iterator[CheckResult]:
    """Check that the cache folder can be written."""
    folder = cache_folder()
    probe = folder / ".doctor"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        yield failed(
            "cache",
            f"{folder} cannot be written: {error.strerror or error}: set "
            f"{CACHE_VARIABLE} to another folder or free some space",
        )
    else:
        yield passed("cache", f"{folder} can be written ({CACHE_VARIABLE})")


def _check_version(name: str, requirement: Requirement | None) -> CheckResult:
    try:
        installed = version(name)
    except PackageNotFoundError:
        return failed(name, f"not installed: pip install '{requirement or name}'")
    if requirement is None or requirement.specifier.contains(
        installed, prereleases=True
    ):
        return passed(name, installed)
    asked = f"{requirement.name}{requirement.specifier}"
    return failed(name, f"{installed}: pip install '{asked}'")


def _requirements() -> dict[str, Requirement]:
    """Return this package's requirements by name, and Flower's requirement on Ray."""
    declared = list(map(Requirement, _declared_requirements()))
    try:
        flower = [Requirement(text) for text in requires("flwr") or []]
    except (PackageNotFoundError, InvalidRequirement):
        flower = []
    ray = [requirement for requirement in flower if requirement.name == "ray"]
    return {requirement.name: requirement for requirement in [*declared, *ray]}


def _declared_requirements() -> list[str]:
    library = Path(instahide_fl.__file__).resolve().parent
    for root in (library.parent, library / "app-files"):
        if (root / "pyproject.toml").is_file():
            project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
            return list(project["dependencies"])
    return []
