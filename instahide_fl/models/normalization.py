"""Normalisation layers by the name of their variant.

BatchNorm's running statistics are statistics of clients' data, so the variant says
where they go:

- `none`: no normalisation.
- `group`: GroupNorm (Wu and He, ECCV 2018): each image is normalised by itself.
- `batch`: BatchNorm. Running statistics are buffers: clients send how theirs changed,
  the server averages them and evaluates with them.
- `local-batch`: BatchNorm by the statistics of the batch at hand, in training and in
  evaluation. It keeps no running statistics, so none can be sent; an image's
  prediction depends on the batch it is in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from instahide_fl.errors import ConfigError

MAX_GROUPS = 8
SINGLE_VALUE = "Expected more than 1 value per channel"  # how PyTorch's error begins


def normalization_layer(variant: str) -> Callable[[int], nn.Module]:
    """Return a function that builds a variant's layer for a number of channels.

    Args:
        variant: a value of `model.normalization`.
    """
    return {
        "none": lambda channels: nn.Identity(),
        "group": lambda channels: nn.GroupNorm(num_groups(channels), channels),
        "batch": lambda channels: nn.BatchNorm2d(channels),
        "local-batch": lambda channels: nn.BatchNorm2d(
            channels, track_running_stats=False
        ),
    }[variant]


def num_groups(channels: int) -> int:
    """Return the largest number of groups up to 8 that divides the channels."""
    return next(n for n in range(MAX_GROUPS, 0, -1) if channels % n == 0)


def replace_batch_norm(module: nn.Module, variant: str) -> None:
    """Replace every BatchNorm2d by a layer of another variant.

    Args:
        module: The network, changed in place.
        variant: a value of `model.normalization`.
    """
    build_layer = normalization_layer(variant)
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, build_layer(child.num_features))
        else:
            replace_batch_norm(child, variant)


@contextlib.contextmanager
def single_values_explained() -> Iterator[None]:
    """Explain why BatchNorm refuses a batch of one image.

    Where a layer's images are a single pixel, there is nothing to normalise that by.

    Raises:
        ConfigError: a layer of the network was given a single value for each channel.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(SINGLE_VALUE):
            raise
        raise ConfigError(
            "a client's last batch, or that of the test images, is a single image, "
            "which BatchNorm (model.normalization) cannot normalise in this network: "
            "choose another train.batch-size, give clients more images (partition), "
            'or set model.normalization = "group"'
        ) from None


def check_single_image(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Check that a network can be trained on a batch of one image.

    Args:
        model: The network, whose running statistics are moved.
        image_shape: (C, H, W) of the images.

    Raises:
        ConfigError: It cannot.
    """
    device = next(model.parameters()).device
    model.train()
    with torch.no_grad(), single_values_explained():
        model(torch.zeros(1, *image_shape, device=device))
