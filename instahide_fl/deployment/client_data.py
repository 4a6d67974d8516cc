"""A deployed client's data: what its client.toml names, and where it is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from instahide_fl.config import Config
from instahide_fl.data.datasets import PrivateImages, load_private_images
from instahide_fl.deployment.policy import CLIENT_FILE, ClientPolicy
from instahide_fl.errors import ConfigError
from instahide_fl.files import explained
from instahide_fl.wire.refusals import refused


def state_folder(folder: Path) -> Path:
    """Return the folder of what a client keeps between runs, and make it.

    Args:
        folder: The client's folder, which it lies in.

    Raises:
        OutputError: The folder cannot be made.
    """
    state = folder.absolute() / "state"
    with explained(state):
        state.mkdir(mode=0o700, exist_ok=True)
    return state


def client_config(policy: ClientPolicy, folder: Path, config: Config) -> Config:
    """Return a run's settings with the client's own data and folders.

    No path that the server sent remains in them: everything that is read or written
    here is named by the client, and so is the part of its images that is used. How
    pixels are decoded (image size, channels, value range) is the run's: every client
    has to decode alike.

    Args:
        policy: The client's policy.
        folder: The client's folder, where its relative paths start.
        config: The run's settings.
    """
    client = config.with_values(
        {
            "data.dataset": policy.data,
            "data.train-rows": policy.train_rows,
            "data.train-part": policy.train_part,
            "data.test-part": "",
            "data.image-column": policy.image_column,
            "data.label-column": policy.label_column,
            "data.config": policy.config,
            "data.drop-duplicates": False,
            "data.validation-share": 0.0,
            "data.root": "",
            "data.download": False,
            "data.client-column": "",
            "pool.source": policy.pool,
            "model.initial-weights": "",
            "output.folder": str(state_folder(folder)),
        }
    )
    return client.with_absolute_paths(folder)


def load_client_images(
    policy: ClientPolicy, folder: Path, config: Config
) -> PrivateImages:
    """Load a client's images, labelled with the classes of the federation.

    Args:
        policy: The client's policy.
        folder: The client's folder, which decoded images are stored in.
        config: The settings, as `client_config` returns them.

    Raises:
        ConfigError: The images have classes that the federation lacks.
        DataError: The images cannot be read.
        OutputError: The folder cannot be written.
    """
    cache = state_folder(folder) / "images"
    images = load_private_images(config.data, cache)
    if not policy.classes:
        return images
    names = images.class_names
    if unknown := [name for name in names if name not in policy.classes]:
        error = ConfigError(
            f"client {policy.name}: its images have classes that are not among "
            f"`classes` in {CLIENT_FILE}: {', '.join(unknown[:3])}"
            f"{', ...' if len(unknown) > 3 else ''}"
        )
        raise refused(error, "classes")
    # Class numbers of the client's folders -> those of the federation.
    numbers = torch.tensor([policy.classes.index(name) for name in names])
    split = replace(
        images.split,
        targets=numbers[images.split.targets],
        num_classes=len(policy.classes),
    )
    return replace(images, split=split, class_names=tuple(policy.classes))
