"""Estimate what a last layer's gradient says of one image, behind a public defence.

The gradient of weight and bias is the outer product of the logits' gradient r with the
layer's input h and 1: [G, b] = r [h, 1]^T. Noise, clipping and pruning leave enough of
it to fit r and h by least squares, with an error that follows from the settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instahide_fl.attacks.layers.linear_layers import LayerTensors
from instahide_fl.config import DefenseConfig

FIT_STEPS = 50  # of alternating least squares, where entries are missing
NOISE_BOUND = 3.0  # standard deviations, below which an entry may be noise alone
ROUNDING = 2.0**-23  # of float32, as a share of the largest entry


@dataclass(frozen=True)
class GradientErrors:
    """How far the entries of an observed gradient may be from the client's own.

    Attributes:
        deviation: The standard deviation of the noise on an entry.
        pruned: Whether small entries were left out, and are unknown.
        smallest: The magnitude up to which an entry counts as left out, if any was.
        scaled: Whether the gradient was scaled down by an unknown factor.
    """

    deviation: float
    pruned: bool
    smallest: float
    scaled: bool

    @classmethod
    def of(
        cls, defense: DefenseConfig, gradient: LayerTensors, update_scale: float
    ) -> GradientErrors:
        """Return the errors that the settings of a defence imply, for one image.

        Args:
            defense: The run's settings.
            gradient: The observed gradient, whose rounding is an error too.
            update_scale: The factor from the update that was sent to this gradient.
        """
        names = defense.transform_names
        largest = max(
            float(part.abs().max()) for part in (gradient.weight, gradient.bias)
        )
        noise = 0.0
        if "noise" in names:
            noise = defense.noise_multiplier * defense.clip_norm * update_scale
        elif defense.differential_privacy == "dp-sgd":
            noise = defense.noise_multiplier * defense.max_gradient_norm
        return cls(
            deviation=noise + ROUNDING * largest,
            pruned="prune" in names,
            smallest=NOISE_BOUND * noise,
            scaled="clip" in names or defense.differential_privacy == "dp-sgd",
        )


@dataclass(frozen=True)
class LogitGradient:
    """The gradient of the loss by the logits of one image, and their predictions.

    Attributes:
        values: The gradient r, f64[K].
        errors: The standard deviation of each entry of r, f64[K]; infinite where
            nothing of a class was sent.
        prediction: The prediction p, f64[K].
        prediction_errors: The standard deviation of each entry of p, f64[K].
    """

    values: Tensor
    errors: Tensor
    prediction: Tensor
    prediction_errors: Tensor


def fit_logit_gradient(
    gradient: LayerTensors, parameters: LayerTensors, errors: GradientErrors
) -> LogitGradient:
    """Fit r and h to the gradient of the last layer of one image.

    Args:
        gradient: The observed gradient.
        parameters: The parameters of the layer.
        errors: The errors of the observed entries.
    """
    # [K,D], [K,1] -> [K,D+1]
    both = torch.cat([gradient.weight, gradient.bias[:, None]], 1)
    sent = torch.ones_like(both, dtype=torch.bool)
    if errors.pruned:
        sent = both.abs() > errors.smallest
        both = both * sent
    values, inputs = _fit_outer_product(both, sent)
    length = float(values.norm())
    # An entry that was not sent is smaller than all that were: taken as 0, it errs by
    # up to that, evenly spread.
    bound = float(both[sent].abs().min()) / math.sqrt(3) if errors.pruned else 0.0
    input_errors = torch.full_like(inputs, errors.deviation / length)
    input_errors[~sent.any(0)] = bound / length
    scale_error = errors.deviation / length  # of the bias column, by which r is known
    logits = parameters.weight @ inputs[:-1] + parameters.bias
    logit_errors = (parameters.weight * input_errors[:-1]).norm(dim=1)
    logit_errors = logit_errors + scale_error * (logits - parameters.bias).abs()
    prediction = torch.softmax(logits, 0)
    known = (inputs.square() * sent).sum(1).sqrt()  # [K]: what r is divided by
    value_errors = errors.deviation / known + scale_error * values.abs()
    value_errors[known == 0] = math.inf
    spread = (prediction.square() @ logit_errors.square()).sqrt()
    return LogitGradient(
        values=values,
        errors=value_errors,
        prediction=prediction,
        prediction_errors=prediction * (logit_errors + spread),
    )


def _fit_outer_product(both: Tensor, sent: Tensor) -> tuple[Tensor, Tensor]:
    """Return r f64[K] and [h, 1] f64[D+1] whose product is nearest to a gradient.

    Args:
        both: The gradient of weight and bias, f64[K,D+1], 0 where nothing was sent.
        sent: The entries that were sent, bool[K,D+1].
    """
    # The first singular vector, by way of the small matrix [K,D+1] @ [D+1,K] -> [K,K].
    values = torch.linalg.eigh(both @ both.T).eigenvectors[:, -1]
    inputs = both.T @ values
    for _ in range(0 if bool(sent.all()) else FIT_STEPS):
        squares = (inputs.square() * sent).sum(1).clamp_min(1e-30)
        values = both @ inputs / squares
        squares = (values.square()[:, None] * sent).sum(0).clamp_min(1e-30)
        inputs = both.T @ values / squares
    last = inputs[-1]
    if last == 0:  # no bias was sent: its scale is lost, and the sign with it
        return values, inputs
    inputs = inputs / last
    squares = (inputs.square() * sent).sum(1).clamp_min(1e-30)
    return both @ inputs / squares, inputs
