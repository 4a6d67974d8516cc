"""Where models are trained."""

from __future__ import annotations

import torch

from instahide_fl.config import ResourcesConfig
from instahide_fl.errors import ConfigError


def training_device(config: ResourcesConfig) -> str:
    """Return the device that the settings ask for: "cuda" or "cpu".

    Raises:
        ConfigError: a GPU share is asked for and this machine has no usable GPU.
    """
    if config.gpus_per_client == 0:
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError(
            f"resources.gpus-per-client is {config.gpus_per_client}, but this machine "
            f"has no usable GPU: set it to 0"
        )
    return "cuda"
