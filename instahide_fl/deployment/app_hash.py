"""The app hash: one hash for the code that a client runs, wherever that code is.

It covers the paths and contents of all files of a Flower app, so that it can be checked
before any of them runs. It is the same for an installation, a checkout, and the archive
(FAB) that Flower sends to clients: Flower writes pyproject.toml anew, and so does the
hash.

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
_MANIFEST = ".info/"  # Flower's list of an archive's files, which follows from them
_LARGEST = 2**27  # bytes of an unpacked app


def app_hash_of_files(files: Mapping[str, bytes]) -> str:
    """Hash an app.

    Args:
        files: The contents of its files by path from the app's root, with "/" between
            parts.

    Returns:
        The sha256, in hex.

    Raises:
        ProtocolError: pyproject.toml is missing or no TOML.
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
        ProtocolError: pyproject.toml is missing or no TOML.
    """
    return app_hash_of_files(_app_at(root, root / LIBRARY.name))


def app_hash_of_installation() -> str:
    """Hash the app that this installation sends to clients, and they expect.

    Raises:
        EngineError: the installation lacks it.
    """
    return app_hash_of_files(_app_at(app_root(), LIBRARY))


def _app_at(root: Path, library: Path) -> dict[str, bytes]:
    """Return an app's files: a wheel has its library apart from the rest."""
    folders = [library, *(root / name for name in PACKAGES if name != library.name)]
    found = {
        f"{folder.name}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for folder in folders
        for path in folder.rglob("*.py")
        # A wheel's second copy of clients/ and server/.
        if APP_FILES not in path.relative_to(folder).parts
    }
    project = root / PROJECT
    return {**found, PROJECT: project.read_bytes()} if project.is_file() else found


def app_hash_of_archive(archive: bytes) -> str:
    """Hash the app in an archive of Flower's (FAB), of which nothing is run.

    Raises:
        ProtocolError: it is no such archive, names a file twice, or is too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            entries = [one for one in packed.infolist() if not one.is_dir()]
            if len({one.filename for one in entries}) < len(entries):
                raise ProtocolError("the server's app names a file twice")
            if sum(one.file_size for one in entries) > _LARGEST:
                raise ProtocolError("the server's app is larger than 128 MiB")
            files = {one.filename: packed.read(one) for one in entries}
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
