"""Recover the soft label, and so the coefficients, of one encoding.

It follows from the gradient of the last layer.
"""

from __future__ import annotations

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
from instahide_fl.attacks.layers.linear_layers import (
    LayerTensors,
    LinearLayer,
    layer_gradient,
    layer_parameters,
    require_head,
    require_one_step,
)
from instahide_fl.errors import AttackError
from instahide_fl.transcript.view import AdversaryView, Observation


class SoftLabels(Attack):
    """Recover soft labels of batches of one, whatever comes before the last layer."""

    name: ClassVar[str] = "soft_labels"
    summary: ClassVar[str] = (
        "soft label and private coefficients of a batch of one, exactly, from the last "
        "layer"
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
        """Solve the gradient of the last bias for labels; see `Attack.reconstruct`.

        Raises:
            AttackError: the last layer is not linear with a bias, or an update is of
                several images or steps.
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
    """Return the soft label of one image.

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


def recover_label(
    view: AdversaryView, observation: Observation, head: LinearLayer
) -> Recovered:
    """Return the soft label of a client's single image.

    Args:
        view: The adversary's view, for the settings of the encoding.
        observation: The observation of the client.
        head: The network's last layer.

    Raises:
        AttackError: the update is of several images or steps, or its gradient is 0.
    """
    require_one_step(SoftLabels.name, observation)
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
    # Private coefficients sum to 1 unless public images take a part.
    weight = None if view.config.instahide.uses_pool else 1.0
    label = soft_label(gradient, layer_parameters(observation, head), weight)
    entries = label.sort(descending=True).values
    private = 1
    if view.config.instahide.method != "none":
        private = min(view.config.instahide.private_count, len(entries))
    diagnostics = {"weight": float(label.sum())} | {
        f"lambda_{number}": float(entries[number - 1])
        for number in range(1, private + 1)
    }
    return Recovered(
        observation.client,
        observation.round,
        soft_targets=label[None].float(),
        diagnostics=diagnostics,
    )
