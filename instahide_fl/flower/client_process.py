"""The undocumented parts of Flower's program `flwr-clientapp`.

FLWR_HOME is read while this is imported: set it before. What `deployment/launcher.py`
relies on (flwr 1.41 and 1.42) is named there; where another version moves these two
modules, a client's every task ends in an ImportError, before any code of the server's
is unpacked.
"""

from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

__all__ = ["flwr_clientapp", "run_clientapp"]
