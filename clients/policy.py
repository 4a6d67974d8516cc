"""A deployed client's own settings (client.toml), applied to what the server asks for.

This is code that the server sent: it guards against mistakes, not against a server that
sends other code. Against that one stands the client's launcher, which compares the
code's hash with the pinned one before any of it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from instahide_fl.config import Config
from instahide_fl.data.datasets import load_private_images
from instahide_fl.deployment.client_policy import (
    CLIENT_FILE,
    ClientPolicy,
    check_code,
    check_settings,
    read_policy,
)
from instahide_fl.deployment.code import hash_of_folder
from instahide_fl.errors import ConfigError, ProtocolError
from instahide_fl.files import explained
from instahide_fl.models.arrays import live_arrays
from instahide_fl.types import PrivateSplit

FOLDER = "client-folder"  # of a deployed client's node config


def state_folder(folder: Path) -> Path:
    """Return where a client keeps what outlasts a run, below its own folder.

    Raises:
        OutputError: it cannot be made.
    """
    state = folder.absolute() / "state"
    with explained(state):
        state.mkdir(mode=0o700, exist_ok=True)
    return state


def open_policy(folder: Path, config: Config) -> ClientPolicy:
    """Read a client's settings, and refuse a run that they do not allow.

    Args:
        folder: of the client.
        config: the run's settings, as the server sent them.

    Raises:
        ConfigError: client.toml is missing or not valid.
        PolicyError: the run asks for more than it allows, or runs other code.
    """
    policy = read_policy(folder)
    check_settings(policy, config)
    if policy.code_hash:
        check_code(policy, hash_of_folder(Path(__file__).resolve().parents[1]))
    return policy


def settings_under(policy: ClientPolicy, folder: Path, config: Config) -> Config:
    """Return a run's settings with the client's own data and places.

    No path that the server sent is left among them: all that is read or written here
    is named by the client.

    Args:
        policy: the client's.
        folder: of the client, where its relative paths start.
        config: the run's settings.
    """
    own = config.with_values(
        {
            "data.dataset": policy.data,
            "data.train-rows": policy.train_rows,
            "data.root": "",
            "data.download": False,
            "data.client-column": "",
            "pool.source": policy.pool,
            "model.initial-weights": "",
            "output.folder": str(state_folder(folder)),
        }
    )
    return own.located(folder)


def load_own_images(policy: ClientPolicy, folder: Path, config: Config) -> PrivateSplit:
    """Load a client's images, labelled with the classes of the federation.

    Args:
        policy: the client's.
        folder: of the client, below which decoded images are kept.
        config: of `settings_under`.

    Raises:
        ConfigError: the images have classes that the federation has not.
        DataError: the images cannot be read.
        OutputError: the folder cannot be written.
    """
    cache = state_folder(folder) / "images"
    split, names = load_private_images(config.data, cache)
    if not policy.classes:
        return split
    if unknown := [name for name in names if name not in policy.classes]:
        raise ConfigError(
            f"client {policy.name}: its images have classes that are not among "
            f"`classes` in {CLIENT_FILE}: {', '.join(unknown[:3])}"
            f"{', ...' if len(unknown) > 3 else ''}"
        )
    numbers = torch.tensor([policy.classes.index(name) for name in names])
    return replace(
        split, targets=numbers[split.targets], num_classes=len(policy.classes)
    )


def check_model(
    client: str, split: PrivateSplit, model: nn.Module, arrays: Mapping[str, Tensor]
) -> None:
    """Refuse parameters that do not belong to the network for this client's images.

    Args:
        client: its name.
        split: its images.
        model: the network that the run's settings and the images give.
        arrays: the global parameters by name.

    Raises:
        ProtocolError: names or shapes differ.
    """
    own = {name: tuple(array.shape) for name, array in live_arrays(model).items()}
    sent = {name: tuple(array.shape) for name, array in arrays.items()}
    different = [name for name in own.keys() | sent if own.get(name) != sent.get(name)]
    if not different:
        return
    name = min(different)
    size = "x".join(map(str, split.images.shape[1:]))
    raise ProtocolError(
        f"client {client} holds {split.num_classes} classes of {size} images, and the "
        f"run's model is for others ({name}: {own.get(name)} here, {sent.get(name)} "
        f"sent): agree on `classes` in {CLIENT_FILE}, and on data.image-size in the "
        f"run's settings"
    )
