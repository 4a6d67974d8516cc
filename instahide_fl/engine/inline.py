"""Engine `inline`: server and clients in this process, without Ray or a SuperLink.

For tests, notebooks and debugging: a breakpoint in a client works.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from instahide_fl.config import Config
from instahide_fl.engine.bundle import importable_app
from instahide_fl.engine.grid import InProcessGrid, server_context
from instahide_fl.run_folder import LOGS, RunFolder


def run_inline(config: Config, folder: RunFolder) -> None:
    """Run the experiment to its end.

    Args:
        config: the run's settings.
        folder: a run folder that is ready to be written.

    Raises:
        InstaHideError: the run failed; the folder notes why.
    """
    run_config = config.to_run_config()
    count = config.partition.num_clients
    nodes = [{"partition-id": i, "num-partitions": count} for i in range(count)]
    log = folder.path / LOGS / "run.log"
    with importable_app() as (clients, server), logging_to(log):
        grid = InProcessGrid(clients.app, nodes, run_config)
        server.app(grid, server_context(run_config))


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send the log of this package and of Flower to a file instead of the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    loggers = [logging.getLogger(name) for name in ("flwr", "instahide_fl")]
    before = [(one, list(one.handlers), one.propagate) for one in loggers]
    for one in loggers:
        one.handlers, one.propagate = [handler], False
    try:
        yield
    finally:
        for one, handlers, propagate in before:
            one.handlers, one.propagate = handlers, propagate
        handler.close()
