"""Training a network on an attacker's own mixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from instahide_fl.attacks.base import Advance
from instahide_fl.attacks.pool_search.training_mixtures import OwnMixtures
from instahide_fl.types import EncodingKey

LEARNING_RATE = 2e-3

Network = TypeVar("Network", bound=nn.Module)
Loss: TypeAlias = Callable[[Tensor, EncodingKey], Tensor]
"""From mixtures f32[B,C,H,W] and their keys to a loss."""


@dataclass(frozen=True)
class Training:
    """How long a network is trained.

    Attributes:
        steps: batches.
        batch_size: mixtures in one.
    """

    steps: int
    batch_size: int


def train_on_mixtures(
    network: nn.Module,
    loss: Loss,
    mixtures: OwnMixtures,
    training: Training,
    rng: np.random.Generator,
    advance: Advance,
) -> float:
    """Train a network, and leave it in the mode of evaluation.

    Every batch is fresh: no mixture is seen twice, so there is nothing to overfit.

    Args:
        network: trained in place.
        loss: of a batch; it runs the network.
        mixtures: where batches come from.
        training: how long.
        rng: draws the mixtures.
        advance: told how many steps are done.

    Returns:
        Mean loss of the last tenth of the steps.
    """
    steps = training.steps
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps
    )
    losses = []
    network.train()
    for step in range(steps):
        value = loss(*mixtures.draw(training.batch_size, rng))
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(float(value.detach()))
        advance(step + 1, steps)
    network.eval()
    return float(np.mean(losses[-max(1, steps // 10) :]))


def seeded_network(build: Callable[[], Network], rng: np.random.Generator) -> Network:
    """Build a network whose initial weights depend on `rng` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        return build()
