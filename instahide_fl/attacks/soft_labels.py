"""Recover the soft label, and so the coefficients, of one encoding.

It follows from the gradient of the last layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    Recovered,
)
from instahide_fl.attacks.layers.last_layer import (
    GradientErrors,
    LogitGradient,
    fit_logit_gradient,
)
from instahide_fl.attacks.layers.linear_layers import (
    LayerTensors,
    LinearLayer,
    layer_gradient,
    layer_parameters,
    require_head,
    require_one_step,
)
from instahide_fl.config import Config
from instahide_fl.errors import AttackError
from instahide_fl.transcript.view import AdversaryView, Observation


class SoftLabels(Attack):
    """Recover soft labels of batches of one, whatever comes before the last layer."""

    name: ClassVar[str] = "soft_labels"
    summary: ClassVar[str] = (
        "soft label and private coefficients of a batch of one, from the last layer: "
        "exactly, or behind a defence with an error that it states"
    )
    on_aggregates: ClassVar[bool] = True
    cost: ClassVar[str] = "milliseconds a client"
    source: ClassVar[str] = (
        'extends Zhao et al., "iDLG: Improved Deep Leakage from Gradients", 2020 '
        "(arXiv:2001.02610), to soft labels"
    )

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Fit the gradient of the last layer for labels; see `Attack.reconstruct`.

        Raises:
            AttackError: the last layer is not linear with a bias, an update is of
                several images or steps, or clients sent signs only.
        """
        head = require_head(self.name, view)
        recovered = []
        for number, observation in enumerate(view.observations):
            recovered.append(recover_label(view, observation, head))
            progress(number + 1, len(view.observations))
        return Reconstruction("labels", tuple(recovered))


def soft_label(
    gradient: LayerTensors, parameters: LayerTensors, weight: float | None
) -> Tensor:
    """Return the soft label of one image whose gradient nothing has changed.

    The gradient of the last bias is S p - y, with p the prediction and S the sum of the
    label y. That of the weight is its outer product with the layer's input h, so h is
    known, and p follows from it. A class that the image lacks has y = 0 and shows S.

    Args:
        gradient: The gradient of the last layer.
        parameters: The parameters of the last layer.
        weight: S, if it is known; None recovers it, which needs a class with y = 0.

    Returns:
        The label y, f64[K].
    """
    row = int(gradient.bias.abs().argmax())
    features = gradient.weight[row] / gradient.bias[row]
    logits = parameters.weight @ features + parameters.bias
    prediction = torch.softmax(logits, dim=0)
    if weight is None:
        # Dividing by a prediction of nearly 0 would amplify rounding errors.
        reliable = prediction > 1e-3 * prediction.max()
        weight = float((gradient.bias / prediction)[reliable].max())
    return (weight * prediction - gradient.bias).clamp_min(0)


@dataclass(frozen=True)
class LabelEstimate:
    """A soft label, with standard errors.

    Attributes:
        label: The label y, f64[K].
        errors: The standard error of each entry, f64[K].
        weight_error: The standard error of the label's sum.
    """

    label: Tensor
    errors: Tensor
    weight_error: float


def estimate_label(
    fit: LogitGradient,
    scaled: bool,
    weight_range: tuple[float, float],
    num_private: int,
) -> LabelEstimate:
    """Return the soft label of one image by least squares.

    The gradient of the logits is c (S p - y), with p the prediction, S the sum of the
    label y, and c <= 1 the factor of clipping. Classes that the image lacks have y = 0,
    and there gradient and prediction have the ratio c S. Of an unknown S behind an
    unknown c only the middle of the range can be said.

    Args:
        fit: The gradient of the logits.
        scaled: Whether c is unknown; it is 1 otherwise.
        weight_range: The smallest and the largest possible S; equal if S is known.
        num_private: The largest number of classes with y > 0.
    """
    lowest, highest = weight_range
    middle, spread = (lowest + highest) / 2, (highest - lowest) / math.sqrt(12)
    known = fit.errors.isfinite()
    present = _likeliest_classes(fit, num_private)
    ratio, ratio_error = middle, spread
    if (spread or scaled) and bool((known & ~present).any()):
        ratio, ratio_error = _fit_ratio(fit, known & ~present)
    scale = ratio / middle if scaled else 1.0
    errors = fit.errors.square().where(known, (ratio * fit.prediction).square())
    errors = errors + (ratio * fit.prediction_errors).square()
    errors = (errors + (ratio_error * fit.prediction).square()).sqrt() / abs(scale)
    label = (ratio * fit.prediction - fit.values) / scale
    label = label.clamp_min(0) * (present & known)
    if scaled:
        errors = errors + label * math.hypot(ratio_error / ratio, spread / middle)
    return LabelEstimate(label, errors, spread if scaled else ratio_error)


def _likeliest_classes(fit: LogitGradient, count: int) -> Tensor:
    """Return the classes whose gradient is furthest below the prediction, bool[K]."""
    ratio = (fit.values / fit.prediction).where(fit.errors.isfinite(), torch.inf)
    present = torch.zeros(len(ratio), dtype=torch.bool)
    present[ratio.argsort()[: min(count, len(ratio) - 1)]] = True
    return present


def _fit_ratio(fit: LogitGradient, absent: Tensor) -> tuple[float, float]:
    """Return the ratio of gradient and prediction in classes, and its standard error.

    Args:
        fit: The gradient of the logits.
        absent: The classes that the image lacks, bool[K].
    """
    variances = fit.errors.square() + fit.prediction_errors.square()
    trust, prediction = 1 / variances[absent], fit.prediction[absent]
    squares = float(trust @ prediction.square())
    ratio = float(trust @ (fit.values[absent] * prediction)) / squares
    return ratio, squares**-0.5


def recover_label(
    view: AdversaryView, observation: Observation, head: LinearLayer
) -> Recovered:
    """Return the soft label of a client's single image.

    Args:
        view: The adversary's view, for the settings of the encoding.
        observation: The observation of the client.
        head: The network's last layer.

    Raises:
        AttackError: the update is of several images or steps, its gradient is 0, or
            only its signs were sent.
    """
    require_one_step(SoftLabels.name, observation)
    if "sign" in view.config.defense.transform_names:
        raise AttackError(
            "attack soft_labels reads sizes of gradients, of which "
            f"defense.transforms = {view.config.defense.transforms!r} leaves only "
            "signs: use hard_labels"
        )
    if observation.num_examples != 1:
        of_one_client = ""
        if observation.clients > 1:
            of_one_client = " of one client (train.clients-per-round = 1)"
        raise AttackError(
            f"attack soft_labels reads the label of a single image, {observation.who} "
            f"sent the gradient of {observation.num_examples} in round "
            f"{observation.round}: record a run with train.batch-size = 1 and "
            f"train.local-batches = 1{of_one_client}, or use hard_labels"
        )
    gradient = layer_gradient(view.config, observation, head)
    if not gradient.bias.any():
        raise AttackError(
            f"{observation.who} sent no gradient of {head.bias} in round "
            f"{observation.round}: attack an earlier round"
        )
    estimate = _estimate(view.config, observation, gradient, head)
    entries = estimate.label.sort(descending=True).values
    private = min(_num_private(view.config), len(entries))
    diagnostics = {
        "weight": float(estimate.label.sum()),
        "weight_error": estimate.weight_error,
        "label_error": float(estimate.errors.max()),
    } | {f"lambda_{i}": float(entries[i - 1]) for i in range(1, private + 1)}
    return Recovered(
        observation.client,
        observation.round,
        soft_targets=estimate.label[None].float(),  # [K] -> [1,K]
        diagnostics=diagnostics,
    )


def _estimate(
    config: Config, observation: Observation, gradient: LayerTensors, head: LinearLayer
) -> LabelEstimate:
    """Return the label that the gradient of the last layer implies."""
    parameters = layer_parameters(observation, head)
    scale = 1.0
    if observation.kind == "delta":
        scale = 1 / (config.train.learning_rate * observation.learning_rate_factor)
    errors = GradientErrors.of(config.defense, gradient, scale)
    fit = fit_logit_gradient(gradient, parameters, errors)
    weight = known_weight(config)
    estimate = estimate_label(
        fit=fit,
        scaled=errors.scaled,
        weight_range=(weight or config.instahide.min_private_weight, 1.0),
        num_private=_num_private(config),
    )
    if config.defense.description == "none":
        return replace(estimate, label=soft_label(gradient, parameters, weight))
    return estimate


def known_weight(config: Config) -> float | None:
    """Return the sum of soft labels, which is 1 unless public images take a part."""
    return None if config.instahide.uses_pool else 1.0


def _num_private(config: Config) -> int:
    """Return the number of private images in an encoding."""
    return 1 if config.instahide.method == "none" else config.instahide.private_count
