"""A deployed client's own settings (client.toml), applied to what the server asks for.

This is code that the server sent: it guards against mistakes, not against a server that
sends other code. Against that one stands the client's launcher, which compares the
code's hash with the pinned one before any of it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from instahide_fl.config import Config
from instahide_fl.deployment.app_hash import app_hash_of_folder
from instahide_fl.deployment.policy import (
    CLIENT_FILE,
    ClientPolicy,
    check_code,
    check_settings,
    read_policy,
)
from instahide_fl.errors import ProtocolError
from instahide_fl.models.arrays import live_arrays
from instahide_fl.types import PrivateSplit

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


def check_model(
    client: str, split: PrivateSplit, model: nn.Module, arrays: Mapping[str, Tensor]
) -> None:
    """Refuse parameters that do not belong to the network for this client's images.

    Args:
        client: The client's name.
        split: The client's images.
        model: The network that follows from the run's settings and the images.
        arrays: The global parameters by name.

    Raises:
        ProtocolError: names or shapes differ.
    """
    expected = {name: tuple(array.shape) for name, array in live_arrays(model).items()}
    sent = {name: tuple(array.shape) for name, array in arrays.items()}
    different = [
        name for name in expected.keys() | sent if expected.get(name) != sent.get(name)
    ]
    if not different:
        return
    name = min(different)
    size = "x".join(map(str, split.images.shape[1:]))
    raise ProtocolError(
        f"client {client} holds {split.num_classes} classes of {size} images, and the "
        f"run's model is for others ({name}: {expected.get(name)} here, "
        f"{sent.get(name)} sent): agree on `classes` in {CLIENT_FILE}, and on "
        f"data.image-size in the run's settings"
    )
