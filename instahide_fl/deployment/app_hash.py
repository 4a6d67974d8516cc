"""The app hash: one hash for the code that a client runs, wherever that code is.

It covers the paths and contents of all files of a Flower app, so that it can be
checked before any of them runs. It is the same for an installation, a checkout, and the
archive (FAB) that Flower sends to clients.

What this relies on (flwr 1.41 and 1.42): Flower packs exactly the files that
`fab-include` in pyproject.toml names, writes pyproject.toml anew with tomli-w and
without `tool.flwr.federations`, and adds a list of files in `.info/`. With a version
that packs otherwise, every client with a pinned hash refuses every run.

`deploy code-hash` prints it and client.toml pins it as `code-hash`. It is not the
`code_hash` of provenance.json, `provenance.imported_code_hash`, which server and
clients take of the code that they have imported.
"""

from __future__ import annotations

import hashlib
import io
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from instahide_fl.errors import ProtocolError
from instahide_fl.flower.app_files import APP_FILES, LIBRARY, app_root

PACKAGES = ("instahide_fl", "clients", "server")
PROJECT = "pyproject.toml"
_MANIFEST = ".info/"  # Flower's list of an archive's files, which says nothing new
_MAX_BYTES = 2**27  # of an unpacked app


def app_hash_of_files(files: Mapping[str, bytes]) -> str:
    """Hash an app.

    Args:
        files: Contents of all files by path from the app's root, with "/" between
            parts.

    Returns:
        The sha256 in hexadecimal digits.

    Raises:
        ProtocolError: pyproject.toml is missing or is no TOML.
    """
    if PROJECT not in files:
        raise ProtocolError(f"the app has no {PROJECT}: it is no Flower app")
    hasher = hashlib.sha256()
    for name in sorted(files):
        content = _as_packed(files[name]) if name == PROJECT else files[name]
        # repr keeps a line break in a name from standing for two files.
        hasher.update(f"{name!r} {hashlib.sha256(content).hexdigest()}\n".encode())
    return hasher.hexdigest()


def app_hash_of_folder(root: Path) -> str:
    """Hash the app whose packages and pyproject.toml lie in a folder.

    Other files there, of a checkout for instance, are no part of the app.

    Raises:
        ProtocolError: pyproject.toml is missing or is no TOML.
    """
    return app_hash_of_files(_app_at(root, root / LIBRARY.name))


def app_hash_of_installation() -> str:
    """Hash the app that this installation sends to clients, and they expect.

    Raises:
        EngineError: The installation lacks the app.
    """
    return app_hash_of_files(_app_at(app_root(), LIBRARY))


def _app_at(root: Path, library: Path) -> dict[str, bytes]:
    """Return the contents of an app's files by path.

    A wheel has its library apart from clients/, server/ and pyproject.toml.
    """
    folders = [library, *(root / name for name in PACKAGES if name != library.name)]
    files = {
        f"{folder.name}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for folder in folders
        for path in folder.rglob("*.py")
        # A wheel's second copy of clients/ and server/.
        if APP_FILES not in path.relative_to(folder).parts
    }
    project = root / PROJECT
    return {**files, PROJECT: project.read_bytes()} if project.is_file() else files


def app_hash_of_archive(archive: bytes) -> str:
    """Hash the app in an archive of Flower's (FAB), without running any of it.

    Raises:
        ProtocolError: The bytes are no such archive, name a file twice, or are too
            large unpacked.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            if len({entry.filename for entry in entries}) < len(entries):
                raise ProtocolError("the server's app names a file twice")
            if sum(entry.file_size for entry in entries) > _MAX_BYTES:
                raise ProtocolError("the server's app is larger than 128 MiB")
            files = {entry.filename: packed.read(entry) for entry in entries}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ProtocolError(f"the server's app cannot be unpacked: {error}") from None
    return app_hash_of_files(
        {name: data for name, data in files.items() if not name.startswith(_MANIFEST)}
    )


def _as_packed(project: bytes) -> bytes:
    """Return pyproject.toml as Flower packs it."""
    try:
        tables: dict[str, Any] = tomllib.loads(project.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the app's {PROJECT} is not valid: {error}") from None
    # Flower leaves a developer's federations out.
    flower = tables.get("tool", {}).get("flwr", {})
    if isinstance(flower, dict):
        flower.pop("federations", None)
    return tomli_w.dumps(tables).encode("utf-8")
