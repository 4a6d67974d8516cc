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

from collections.abc import Callable

from torch import nn

MAX_GROUPS = 8


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
