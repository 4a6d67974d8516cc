"""An experiment on a federation's real clients: handed in, and followed to its end."""

from __future__ import annotations

import contextlib
import time

from instahide_fl.config import Config
from instahide_fl.deployment.superlink import LocalSuperLink
from instahide_fl.errors import EngineError
from instahide_fl.run_folder import RunFolder

STATUS_SECONDS = 10.0  # between two looks at a run's status: each costs a process
END_SECONDS = 60.0  # for a run's status to turn once its folder says it is over
GONE_SECONDS = 30.0  # without an answer, after which the SuperLink is given up


def run_deployed(superlink: LocalSuperLink, config: Config, folder: RunFolder) -> None:
    """Run an experiment on the federation's clients, to its end.

    Args:
        superlink: that is up.
        config: the run's settings, with the run folder in them.
        folder: a run folder that is ready to be written.

    Raises:
        EngineError: Flower refused or ended the run, or the SuperLink is gone.
        InstaHideError: the run failed; the reason is the ServerApp's own.
    """
    superlink.require()
    identifier = superlink.submit(config)
    try:
        status = _wait(superlink, identifier, folder)
    except KeyboardInterrupt:
        with contextlib.suppress(EngineError):
            superlink.stop(identifier)
        raise
    if failure := folder.failure():
        raise failure
    if not folder.finished:
        raise EngineError(
            f"Flower ended run {identifier} as {status or 'unknown'!r}: see "
            f"{superlink.folder.server / 'superlink.log'}"
            + (
                f"; continue with instahide-fl deploy run --resume {folder.path}"
                if folder.resumable
                else ""
            )
        )


def _wait(superlink: LocalSuperLink, identifier: str, folder: RunFolder) -> str:
    """Return the status with which a run ended."""
    looked = answered = time.monotonic()
    over_since: float | None = None
    while True:
        now = time.monotonic()
        over = folder.finished or folder.failure() is not None
        if over and over_since is None:
            over_since, looked = now, 0.0
        if now - looked > STATUS_SECONDS:
            looked = now
            status = superlink.status(identifier)
            if status.startswith("finished"):
                return status
            if status:
                answered = now
            elif now - answered > GONE_SECONDS and not superlink.answers():
                raise EngineError(
                    f"the SuperLink is gone: start it again, then continue with "
                    f"instahide-fl deploy run --resume {folder.path}"
                )
        if over_since is not None and now - over_since > END_SECONDS:
            return "over"
        time.sleep(0.2)
