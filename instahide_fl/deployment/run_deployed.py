"""Run an experiment on the real clients of a federation, and wait for its end."""

from __future__ import annotations

import contextlib
import time

from instahide_fl.config import Config
from instahide_fl.deployment.superlink import LocalSuperLink
from instahide_fl.errors import EngineError
from instahide_fl.flower.superlink import FlowerRun, FlwrCommand, await_end
from instahide_fl.run_folder import RunFolder

GONE_SECONDS = 30.0  # without an answer, after which the SuperLink is given up


def run_deployed(superlink: LocalSuperLink, config: Config, folder: RunFolder) -> None:
    """Run an experiment on the federation's clients, to its end.

    Args:
        superlink: The SuperLink, which is up.
        config: The run's settings, with the run folder in them.
        folder: A run folder that is ready to be written.

    Raises:
        EngineError: Flower refused or ended the run, or the SuperLink is gone.
        InstaHideError: The run failed; the reason is the ServerApp's own.
    """
    superlink.check_is_up()
    identifier = superlink.submit(config)
    flwr = superlink.flwr()
    try:
        run = _await_end(superlink, flwr, identifier, folder)
    except KeyboardInterrupt:
        with contextlib.suppress(EngineError):
            flwr.stop(identifier)
        raise
    if failure := folder.failure():
        raise failure
    if not folder.finished:
        raise EngineError(
            f"Flower ended run {identifier} as {run.status or 'unknown'!r}: see "
            f"{superlink.folder.server / 'superlink.log'}"
            + (
                f"; continue with instahide-fl deploy run --resume {folder.path}"
                if folder.resumable
                else ""
            )
        )


def _await_end(
    superlink: LocalSuperLink, flwr: FlwrCommand, identifier: str, folder: RunFolder
) -> FlowerRun:
    """Wait until a run is over, or its SuperLink is gone."""
    answered_at = time.monotonic()

    def look_up() -> FlowerRun:
        nonlocal answered_at
        asked_at, run = time.monotonic(), flwr.find_run(identifier)
        if run.status:
            answered_at = asked_at
        elif asked_at - answered_at > GONE_SECONDS and not superlink.is_up():
            raise EngineError(
                f"the SuperLink is gone: start it again, then continue with "
                f"instahide-fl deploy run --resume {folder.path}"
            )
        return run

    return await_end(folder, look_up)
