"""Where models are trained."""

from __future__ import annotations

import torch

from instahide_fl.config import ResourcesConfig
from instahide_fl.errors import ConfigError

IMAGE_SHARE = 0.5  # the part of a worker's GPU memory that images may fill


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
    # The same bits for the same seed: by default cuDNN picks its algorithms by timing.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return "cuda"


def room_for_images(config: ResourcesConfig) -> int:
    """Return how many bytes of GPU memory a worker may fill with images.

    Half of its share of a GPU: the other half is for models and activations.
    """
    if training_device(config) == "cpu":
        return 0
    _, total = torch.cuda.mem_get_info()
    return int(total * min(1.0, config.gpus_per_client) * IMAGE_SHARE)
