"""Writing results so that nothing is ever half written, and the cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from instahide_fl.errors import OutputError

TEMPORARY = ".part"  # how the names of unfinished files end


def cache_folder(*parts: str) -> Path:
    """Return a folder for prepared data.

    It lies below `$INSTAHIDE_FL_CACHE`, or the user's cache folder if that is not set.
    """
    root = os.environ.get("INSTAHIDE_FL_CACHE")
    base = Path(root) if root else Path(platformdirs.user_cache_dir("instahide-fl"))
    return base.joinpath(*parts)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a failed write (full disk, read-only folder) into an OutputError.

    Raises:
        OutputError: the operating system refused; the text names `path` and the reason.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}: choose another place or free some space"
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that replaces it when the block succeeds.

    Raises:
        OutputError: the file cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(TEMPORARY, f".{path.name}.", path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes files private; results follow the user's umask instead.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder.

    Whoever is killed lets go of it. A file system without locks has none.

    Args:
        folder: that exists.

    Raises:
        OutputError: another process is writing there.
    """
    with explained(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another process is writing in {folder} right now: wait for it, or "
                f"choose another --out"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove what `atomic_file` leaves below a folder if its process is killed.

    Nobody else may be writing there.

    Raises:
        OutputError: the operating system refused.
    """
    with explained(folder):
        for path in folder.rglob(f".*{TEMPORARY}"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block succeeds.

    If another process finished the same folder meanwhile, its result stays.

    Raises:
        OutputError: the folder cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            try:
                temporary.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    """Let a file's new name outlast a power failure, as its content does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
