"""Images from what the first layer of a network was given.

A sign-invariant network gives its first layer absolute values, less their mean and
divided by their standard deviation. Both numbers are lost with the signs, but not to
an adversary who knows how images are normalised and mixed.
"""

from __future__ import annotations

from torch import Tensor

from instahide_fl.config import Config, EncoderConfig
from instahide_fl.encoding.mixing import draw_coefficients
from instahide_fl.rng import stream

DRAWS = 1_000


def images_from_inputs(config: Config, inputs: Tensor) -> Tensor:
    """Return images, or estimates of their absolute values.

    The smallest absolute value of an image is taken to be 0, and the mean of its
    squares to be that of all encodings.

    Args:
        config: The run's settings.
        inputs: The inputs of the first layer, f64[M,D].

    Returns:
        f64[M,D], the inputs themselves unless the network is sign-invariant.
    """
    if not config.sign_invariant or not len(inputs):
        return inputs
    shifted = inputs - inputs.amin(dim=1, keepdim=True)
    mean_square = shifted.square().mean(dim=1, keepdim=True).clamp_min(1e-12)
    return shifted * (_mean_square_of_encodings(config.instahide) / mean_square).sqrt()


def _mean_square_of_encodings(config: EncoderConfig) -> float:
    """Return the expected square of a pixel: images have 1, and mixing averages."""
    if config.method == "none":
        return 1.0
    coefficients = draw_coefficients(DRAWS, config, stream(0, "mean-square"))  # [N,k]
    return float(coefficients.square().sum(dim=1).mean())
