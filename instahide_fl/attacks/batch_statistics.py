"""Mean and variance of a batch in each BatchNorm layer, from running statistics."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from torch import Tensor

from instahide_fl.attacks.base import Advance, Attack, Reconstruction, Recovered
from instahide_fl.attacks.layers.linear_layers import build_network
from instahide_fl.attacks.layers.measured_statistics import running_momenta
from instahide_fl.config import Config
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import Knowledge
from instahide_fl.transcript.view import AdversaryView, Observation


class BatchStatistics(Attack):
    """Statistics of a batch's features, which priors for inversion are made of."""

    section = "batch_statistics"
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
        self, view: AdversaryView, rng: np.random.Generator, advance: Advance
    ) -> Reconstruction:
        """Undo the moving average.

        Raises:
            AttackError: the network keeps no running statistics.
        """
        momenta = _momenta(view)
        recovered = []
        for done, observation in enumerate(view.observations):
            recovered.append(_recover(view.config, observation, momenta))
            advance(done + 1, len(view.observations))
        return Reconstruction("statistics", tuple(recovered))


def batch_average(
    before: Tensor, change: Tensor, momentum: float, steps: int
) -> Tensor:
    """Return the average over steps of what a moving average was moved by.

    Args:
        before: running statistic that was sent.
        change: of it, over the steps.
        momentum: weight of a new batch.
        steps: batches seen; for one the result is that batch's own statistic. For
            several, later ones weigh more.
    """
    kept = (1 - momentum) ** steps
    return before + change / (1 - kept)


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
        for ours, theirs in (("mean", "running_mean"), ("variance", "running_var")):
            name = f"{layer}.{theirs}"
            average = batch_average(
                before[name].double(), update[name].double(), momentum, steps
            )
            statistics[f"{layer}.{ours}"] = average.float()
    diagnostics = {"layers": float(len(momenta)), "batches_averaged": float(steps)}
    return Recovered(
        observation.client,
        observation.round,
        statistics=statistics,
        diagnostics=diagnostics,
    )
