"""Files that are never half written, folders with one writer, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from instahide_fl.errors import OutputError

CACHE_VARIABLE = "INSTAHIDE_FL_CACHE"
TEMPORARY = ".part"  # suffix of unfinished files
MIN_AGE_ABANDONED = 60.0  # seconds: a new folder is locked a moment after it is made
MAX_AGE_UNLOCKED = 86_400.0  # seconds that a folder may be written without a lock


def cache_folder(*parts: str) -> Path:
    """Return a folder for prepared data.

    It lies below `$INSTAHIDE_FL_CACHE`, or the user's cache folder if that is not set.

    Args:
        parts: The names of the folder and of those that it lies in, outermost first.

    Raises:
        OutputError: The user has no home folder, and the environment names no other.
    """
    try:
        base = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir(
            "instahide-fl"
        )
    except RuntimeError as error:
        raise OutputError(
            f"no folder for prepared data: {error}, or set {CACHE_VARIABLE}"
        ) from None
    return Path(base, *parts)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a failed write (full disk, read-only folder) into an OutputError.

    Args:
        path: The file or folder that is written.

    Raises:
        OutputError: the operating system refused; the text names `path` and the reason.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "choose another place or free some space"
        if path.is_relative_to(cache_folder()):
            remedy = f"set {CACHE_VARIABLE} to another folder or free some space"
        raise OutputError(f"cannot write {path}: {reason}: {remedy}") from error


@contextlib.contextmanager
def atomic_file(
    path: Path,
    *,
    synced: bool = True,
    private: bool = False,
    previous: Path | None = None,
) -> Iterator[Path]:
    """Replace a file in one step, when the block succeeds.

    Args:
        path: The file.
        synced: Whether to wait for the disk: for the content before the file gets its
            name, and for its new entry in its folder. Then a power failure leaves the
            old file or the new one.
        private: Whether only its owner may read it, and look into the folders that are
            made for it.
        previous: The name that the file of before gets; None removes it.

    Yields:
        A temporary path beside it, to write to.

    Raises:
        OutputError: the file cannot be written.
    """
    with explained(path):
        make_folder(path.parent, private=private)
        handle, name = tempfile.mkstemp(TEMPORARY, f".{path.name}.", path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes files private; results follow the user's umask instead.
            temporary.chmod(0o600 if private else 0o666 & ~_umask())
            if synced:
                _sync(temporary)
            if previous is not None:
                with contextlib.suppress(FileNotFoundError):
                    path.replace(previous)
            temporary.replace(path)
            if synced:
                _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def make_folder(path: Path, *, private: bool = False) -> None:
    """Make a folder, and those that it lies in, where they are missing.

    Args:
        path: The folder.
        private: Whether only its owner may look into what is made.
    """
    missing = [
        folder for folder in (path, *path.parents) if not os.path.lexists(folder)
    ]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
    path.mkdir(parents=True, exist_ok=True)  # raises if it is a file


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Allow one process at a time to write in a folder.

    The lock of a process that is killed is released. On a file system without locks,
    nothing is locked.

    Args:
        folder: The folder, which exists.

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
    """Remove the files that `atomic_file` leaves behind if its process is killed.

    No other process may be writing in the folder.

    Args:
        folder: The folder; the folders in it are searched too.

    Raises:
        OutputError: the operating system refused.
    """
    with explained(folder):
        for path in folder.rglob(f".*{TEMPORARY}"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a folder in one step, when the block succeeds.

    If another process finished the same folder meanwhile, its result stays.

    Args:
        path: The folder.

    Yields:
        A temporary folder beside it, to write in.

    Raises:
        OutputError: the folder cannot be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        handle = os.open(temporary, os.O_RDONLY)
        try:
            # Tells remove_abandoned_folders that the writer lives.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            _sync_below(temporary)
            try:
                temporary.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
            _sync(path.parent)
        finally:
            os.close(handle)
            shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned_folders(parent: Path) -> None:
    """Remove the folders that `atomic_folder` leaves behind if its process is killed.

    Other processes may be writing in the same parent: what they write is locked, or,
    on a file system without locks, younger than `MAX_AGE_UNLOCKED`. What cannot be
    removed stays.

    Args:
        parent: The folder whose unfinished folders are removed; it need not exist.
    """
    # mkdtemp ends names in eight characters.
    for folder in parent.glob(".*.????????"):
        with contextlib.suppress(OSError):
            if _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    age = time.time() - folder.stat().st_mtime
    if age < MIN_AGE_ABANDONED or not folder.is_dir():
        return False
    handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return age > MAX_AGE_UNLOCKED
    finally:
        os.close(handle)
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step.

    Args:
        path: The file.
        text: The content, written as UTF-8.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    """Write a file's content, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and user-space file systems cannot do this for a folder.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _sync_below(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                _sync(path)
        _sync(Path(parent))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
