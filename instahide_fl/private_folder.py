"""Temporary folders of this user's own, which can hold sockets and are never left over.

No other user can look into them (mode 700), whatever is made in them. Each holds a file
that its process has locked: a folder whose process was killed is recognised by its free
lock, and removed by the next one that needs such a folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from instahide_fl.errors import OutputError
from instahide_fl.files import MIN_AGE_ABANDONED, explained

PREFIX = "ihfl-"  # begins the names of private folders
LOCK = "lock"  # the file in each that its process has locked
MAX_SOCKET_PATH = 107  # bytes that the path of a Unix socket may have
# Ray: /ray/session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store.N
MAX_BELOW_PRIVATE_FOLDER = 70
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Make a temporary folder of this user's own (mode 700), and remove it at the end.

    Yields:
        The folder, whose path is short enough for the sockets of Ray and Flower.

    Raises:
        OutputError: No folder for temporary files can be used.
    """
    parent = folder_for_sockets()
    with explained(parent):
        _remove_stale_folders(parent)
        folder, lock = _make_locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def folder_for_sockets() -> Path:
    """Return a folder for temporary files that Unix sockets can lie below.

    It is that of the environment ($TMPDIR) where its path is short and in ASCII, which
    Ray asks for too, and no other user can rename what lies in it; else another that
    every system has.

    Raises:
        OutputError: None of them is short, safe and can be written.
    """
    longest = MAX_SOCKET_PATH - MAX_BELOW_PRIVATE_FOLDER - len(f"/{PREFIX}12345678")
    folders = [*_usual_temporary_folder(), *map(Path, SHORT_FOLDERS)]
    for folder in folders:
        path = str(folder)
        is_short = len(path) <= longest and path.isascii()
        if is_short and os.access(folder, os.W_OK | os.X_OK) and _is_safe(folder):
            return folder
    raise OutputError(
        f"no folder for temporary files can be used ({', '.join(map(str, folders))}): "
        f"set TMPDIR to a folder that can be written and whose path has at most "
        f"{longest} characters, all in ASCII, and that only you can write, or that has "
        f"the sticky bit (chmod +t)"
    )


def _usual_temporary_folder() -> list[Path]:
    """Return the folder that Python chooses, by TMPDIR; empty if it finds none."""
    try:
        return [Path(tempfile.gettempdir())]
    except OSError:
        return []


def _is_safe(folder: Path) -> bool:
    """Tell whether others are kept from renaming what this user makes in a folder."""
    status = folder.stat()
    is_shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    is_sticky = status.st_mode & stat.S_ISVTX
    # The owner of a sticky folder may rename all that lies in it.
    return status.st_uid in (0, os.getuid()) and bool(is_sticky or not is_shared)


def _make_locked_folder(parent: Path) -> tuple[Path, int]:
    """Return a new folder, and the handle that keeps its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Another process may have taken it for a stale one before it was locked.
        if os.fstat(lock).st_nlink:
            return folder, lock
        os.close(lock)


def _remove_stale_folders(parent: Path) -> None:
    """Remove the private folders of this user's processes that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if status.st_uid == os.getuid() and stat.S_ISDIR(status.st_mode):
                _remove_if_stale(folder, time.time() - status.st_mtime)


def _remove_if_stale(folder: Path, age: float) -> None:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        if age > MIN_AGE_ABANDONED:
            folder.rmdir()  # refused unless it is empty, as one that is half made
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The lock's own name goes last: a folder half removed is still recognised.
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink()
        shutil.rmtree(folder)
    finally:
        os.close(lock)
