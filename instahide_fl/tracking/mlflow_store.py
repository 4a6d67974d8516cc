"""Whether an MLflow store can be used, found out in seconds.

MLflow itself tries for minutes: with a database that cannot be opened for 104 s, with a
server that does not answer for 50 s and more.
"""

from __future__ import annotations

import http.client
import sqlite3
import ssl
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

from instahide_fl.errors import OutputError

SQLITE = "sqlite:///"
ANSWER_SECONDS = 5.0  # for a server to answer, or a database to be free


def check_store(uri: str) -> None:
    """Check that a tracking server answers, or that a database file can be written.

    Addresses of other kinds are left to MLflow.

    Args:
        uri: The address of the tracking server or database.

    Raises:
        OutputError: It does not, or cannot.
    """
    if uri.startswith(SQLITE):
        _check_database(uri, Path(uri.removeprefix(SQLITE)))
    elif uri.startswith(("http://", "https://")):
        _check_server(uri)


def _check_database(uri: str, path: Path) -> None:
    if path.is_dir():
        raise OutputError(
            f"output.mlflow = {str(path)!r} is a folder: give the file of a database, "
            f"for instance {path / 'mlflow.db'}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # No transaction unless asked for: one is asked for, to see that it is granted.
        with closing(sqlite3.connect(path, ANSWER_SECONDS, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
    except (OSError, sqlite3.Error) as error:
        raise unusable_store(uri, str(error)) from None


def _check_server(uri: str) -> None:
    try:
        health = f"{uri.rstrip('/')}/health"
        urllib.request.urlopen(health, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # an answer, if not a friendly one
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        # MLflow may be told to trust certificates that Python does not.
        if not isinstance(reason, ssl.SSLError):
            raise unusable_store(uri, f"no answer ({reason})") from None


def unusable_store(uri: str, reason: str) -> OutputError:
    """Return the error of a store that cannot be used.

    Args:
        uri: The address of the tracking server or database.
        reason: Why, in words.
    """
    return OutputError(
        f"MLflow at {uri} (output.mlflow): {reason}: give the file of a database such "
        f"as mlflow.db, or the address of a tracking server that runs"
    )
