"""Recover mean and variance of a batch in each BatchNorm layer.

They follow from the running statistics before and after a round.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from torch import Tensor

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    Recovered,
)
from instahide_fl.attacks.layers.linear_layers import build_network
from instahide_fl.attacks.layers.measured_statistics import running_momenta
from instahide_fl.config import Config
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView, Observation


class BatchStatistics(Attack):
    """Recover statistics of batches, which inversion attacks use as priors."""

    name: ClassVar[str] = "batch_statistics"
    summary: ClassVar[str] = (
        "mean and variance of a batch in every BatchNorm layer, exactly, from its "
        "running statistics"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset(
        {Knowledge.PARAMETERS, Knowledge.UPDATES, Knowledge.BUFFERS}
    )
    cost: ClassVar[str] = "milliseconds a client"
    source: ClassVar[str] = (
        "the update rule of BatchNorm (Ioffe and Szegedy, ICML 2015); used for "
        'inversion by Yin et al., "See through Gradients", CVPR 2021'
    )

    def reconstruct(
        self, view: AdversaryView, rng: np.random.Generator, progress: ProgressCallback
    ) -> Reconstruction:
        """Undo the moving average of each update; see `Attack.reconstruct`.

        Raises:
            AttackError: the network keeps no running statistics.
        """
        momenta = _momenta(view)
        recovered = []
        for number, observation in enumerate(view.observations):
            recovered.append(_recover(view.config, observation, momenta))
            progress(number + 1, len(view.observations))
        return Reconstruction("statistics", tuple(recovered))


def batch_average(
    before: Tensor, change: Tensor, momentum: float, steps: int
) -> Tensor:
    """Return the average statistic of the batches that moved a running statistic.

    For one batch this is the batch's own statistic; of several, later ones weigh more.

    Args:
        before: The running statistic that the client was sent.
        change: The change of the running statistic over the steps.
        momentum: The weight of a new batch in the running statistic.
        steps: The number of batches.
    """
    weight_of_before = (1 - momentum) ** steps
    return before + change / (1 - weight_of_before)


def forward_passes(config: Config, observation: Observation) -> int:
    """Return how many batches went through the network for an update."""
    if observation.kind == "delta":
        return len(observation.batch_sizes)
    return math.ceil(observation.num_examples / config.train.batch_size)


def _momenta(view: AdversaryView) -> dict[str, float]:
    """Return the momentum of each BatchNorm layer that keeps running statistics."""
    network = build_network(view.config, view.image_shape, view.num_classes)
    momenta = running_momenta(network)
    if not momenta:
        raise AttackError(
            f"attack batch_statistics reads running statistics of BatchNorm, of which "
            f"model.name = {view.config.model.name!r} with model.normalization = "
            f"{view.config.model.normalization!r} sends none: nothing of this kind "
            f'leaks; to see it leak, run with model.normalization = "batch"'
        )
    return momenta


def _recover(
    config: Config, observation: Observation, momenta: dict[str, float]
) -> Recovered:
    before, update = observation.parameters, observation.update
    assert before is not None, "the threat model was checked to give parameters"
    assert update is not None, "the threat model was checked to give updates"
    steps = forward_passes(config, observation)
    statistics = {}
    for layer, momentum in momenta.items():
        for kind, buffer in (("mean", "running_mean"), ("variance", "running_var")):
            name = f"{layer}.{buffer}"
            average = batch_average(
                before[name].double(), update[name].double(), momentum, steps
            )
            statistics[f"{layer}.{kind}"] = average.float()
    diagnostics = {"layers": float(len(momenta)), "batches_averaged": float(steps)}
    return Recovered(
        observation.client,
        observation.round,
        statistics=statistics,
        diagnostics=diagnostics,
    )
