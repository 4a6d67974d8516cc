"""The undocumented parts of Flower's program `flwr-clientapp`.

FLWR_HOME is read while this is imported: set it before.
"""

from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

__all__ = ["flwr_clientapp", "run_clientapp"]
