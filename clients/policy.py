"""A deployed client's own settings (client.toml), applied to what the server asks for.

This is code that the server sent: it guards against mistakes, not against a server that
sends other code. Against that one stands the client's launcher, which compares the
code's hash with the pinned one before any of it runs.
"""

from __future__ import annotations

from pathlib import Path

from instahide_fl.config import Config
from instahide_fl.deployment.app_hash import app_hash_of_folder
from instahide_fl.deployment.policy import (
    ClientPolicy,
    check_code,
    check_settings,
    read_policy,
)

FOLDER = "client-folder"  # a key of a deployed client's node config


def open_policy(folder: Path, config: Config) -> ClientPolicy:
    """Read a client's settings, and refuse a run that they do not allow.

    Args:
        folder: The client's folder.
        config: The run's settings, as the server sent them.

    Raises:
        ConfigError: client.toml is missing or not valid.
        PolicyError: the run asks for more than it allows, or runs other code.
    """
    policy = read_policy(folder)
    check_settings(policy, config)
    if policy.code_hash:
        check_code(policy, app_hash_of_folder(Path(__file__).resolve().parents[1]))
    return policy
