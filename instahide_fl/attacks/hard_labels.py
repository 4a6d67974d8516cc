"""Recover the classes of a batch, with repeats, from the gradient of the last bias."""

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
    LinearLayer,
    build_network,
    layer_gradient,
    require_head,
    require_one_step,
)
from instahide_fl.config.base import Count
from instahide_fl.models.arrays import live_arrays
from instahide_fl.transcript.view import AdversaryView, Observation


class HardLabels(Attack):
    """Recover labels of plain batches; of encodings, the classes surely in them."""

    name: ClassVar[str] = "hard_labels"
    summary: ClassVar[str] = (
        "labels of a batch with repeats, from the last layer; of encodings, classes"
    )
    on_aggregates: ClassVar[bool] = True
    cost: ClassVar[str] = "milliseconds a client"
    source: ClassVar[str] = (
        'Zhao et al., "iDLG: Improved Deep Leakage from Gradients", 2020 '
        '(arXiv:2001.02610); Wainakh et al., "User-Level Label Leakage from Gradients '
        'in Federated Learning", PoPETs 2022'
    )

    dummy_images: Count = 64
    """The number of random images that the mean prediction is estimated on."""

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Count how often each class pulls its bias down; see `Attack.reconstruct`.

        Raises:
            AttackError: the last layer is not linear with a bias, or an update is of
                several local steps.
        """
        head = require_head(self.name, view)
        drawn = rng.standard_normal((self.dummy_images, *view.image_shape), np.float32)
        dummies = torch.from_numpy(drawn)
        recovered = []
        for number, observation in enumerate(view.observations):
            recovered.append(_recover(view, observation, head, dummies))
            progress(number + 1, len(view.observations))
        return Reconstruction("labels", tuple(recovered))


def count_labels(bias_gradient: Tensor, expected: Tensor, batch_size: int) -> Tensor:
    """Return how often each class occurs in a batch of hard labels.

    The gradient times B is, for each class, the sum of its predictions minus its
    number of images. A negative entry proves an image of the class, since predictions
    are positive. Each remaining image goes to the class whose entry is furthest below
    the sum of predictions that is expected; assigning an image raises it by 1.

    Args:
        bias_gradient: The gradient of the mean loss by the last bias, f64[K].
        expected: An estimate of the mean prediction, which sums to 1, f64[K].
        batch_size: B, the number of images.

    Returns:
        The number of images of each class, i64[K]; they sum to B.
    """
    total = bias_gradient * batch_size
    counts = (total < 0).long()
    remaining = total - batch_size * expected + counts
    for _ in range(batch_size - int(counts.sum())):
        lowest = int(remaining.argmin())
        counts[lowest] += 1
        remaining[lowest] += 1
    return counts


def _recover(
    view: AdversaryView, observation: Observation, head: LinearLayer, dummies: Tensor
) -> Recovered:
    require_one_step(HardLabels.name, observation)
    gradient = layer_gradient(view.config, observation, head).bias
    size = observation.num_examples
    certain = torch.nonzero(gradient < 0)[:, 0]
    if view.config.instahide.method != "none":
        # Soft labels do not add up to whole numbers, so they cannot be counted.
        classes = certain
    elif size == 1:
        classes = gradient.argmin()[None]
    else:
        expected = _mean_prediction(view, observation, dummies)
        counts = count_labels(gradient, expected, size)
        classes = torch.repeat_interleave(counts)
    diagnostics = {"certain_classes": float(len(certain))}
    return Recovered(
        observation.client,
        observation.round,
        classes=classes,
        diagnostics=diagnostics,
    )


def _mean_prediction(
    view: AdversaryView, observation: Observation, dummies: Tensor
) -> Tensor:
    """Return the mean prediction of the client's network for random images, f64[K]."""
    network = build_network(view.config, view.image_shape, view.num_classes)
    with torch.no_grad():
        for name, array in live_arrays(network).items():
            # The threat model may withhold running statistics.
            if observation.parameters and name in observation.parameters:
                array.copy_(observation.parameters[name])
        return torch.softmax(network(dummies).double(), dim=1).mean(dim=0)
