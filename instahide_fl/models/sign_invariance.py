"""Networks that see absolute values only, for images whose signs are random.

InstaHide draws the signs of an encoding uniformly and independently of the images, so
the absolute values hold all that can be learned (a sufficient statistic). They are far
from centred and differ in scale with the number of images mixed, so they are
standardised in each image.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

MIN_VARIANCE = 1e-5  # added to an image's variance, which may be 0


def standardised_absolute(images: Tensor) -> Tensor:
    """Return |x| with mean 0 and standard deviation 1 in each image.

    Mean and deviation are over all pixels and channels of an image. An image of a
    single absolute value becomes 0.

    Args:
        images: Any images, f32[B,C,H,W].

    Returns:
        f32[B,C,H,W].
    """
    return F.layer_norm(images.abs(), images.shape[1:], eps=MIN_VARIANCE)


def make_sign_invariant(model: nn.Module) -> None:
    """Let a network see its images through `standardised_absolute`, for good.

    Names and shapes of its parameters stay. The step is a hook and no module around the
    network, and the hook a function of this module, so that copies and pickles of the
    network have it too.

    Args:
        model: A network of f32[B,C,H,W], changed in place.
    """
    model.register_forward_pre_hook(_standardise_inputs)


def _standardise_inputs(_model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = inputs
    return standardised_absolute(images), *others
