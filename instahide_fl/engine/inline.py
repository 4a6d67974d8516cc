"""Engine `inline`: server and clients in this process, without Ray or a SuperLink.

For tests, notebooks and debugging: a breakpoint in a client works.
"""

from __future__ import annotations

from instahide_fl.config import Config
from instahide_fl.engine.logs import logging_to
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.in_process_grid import (
    InProcessGrid,
    server_context,
    simulated_nodes,
)
from instahide_fl.run_folder import LOGS, RunFolder
from instahide_fl.training.allocator import keep_freed_memory


def run_inline(config: Config, folder: RunFolder) -> None:
    """Run the experiment to its end.

    Args:
        config: The run's settings.
        folder: A run folder that is ready to be written.

    Raises:
        InstaHideError: The run failed; the folder notes why.
    """
    keep_freed_memory()
    run_config = config.to_run_config()
    nodes = simulated_nodes(config.partition.num_clients)
    log = folder.path / LOGS / "run.log"
    with importable_app() as (clients, server), logging_to(log):
        grid = InProcessGrid(clients.app, nodes, run_config)
        server.app(grid, server_context(run_config))
