"""Train a network on the attacker's own mixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from instahide_fl.attacks.base import ProgressCallback
from instahide_fl.attacks.pool_search.training_mixtures import OwnMixtures
from instahide_fl.types import EncodingKey

LEARNING_RATE = 2e-3

Network = TypeVar("Network", bound=nn.Module)
Loss: TypeAlias = Callable[[Tensor, EncodingKey], Tensor]
"""A function of mixtures f32[B,C,H,W] and their keys that returns the mean loss."""


@dataclass(frozen=True)
class Training:
    """How long a network is trained.

    Attributes:
        steps: The number of batches.
        batch_size: The number of mixtures in a batch.
    """

    steps: int
    batch_size: int


def train_on_mixtures(
    network: nn.Module,
    loss: Loss,
    mixtures: OwnMixtures,
    training: Training,
    rng: np.random.Generator,
    progress: ProgressCallback,
) -> float:
    """Train a network in place, and leave it in evaluation mode.

    Every batch is drawn afresh: no mixture comes twice, so there is nothing to overfit.

    Args:
        network: The network to train.
        loss: The loss of a batch; it runs the network.
        mixtures: The source of the batches.
        training: The number and the size of the batches.
        rng: The generator that draws the mixtures.
        progress: The callback for progress, in steps.

    Returns:
        The mean loss of the last tenth of the steps.
    """
    steps = training.steps
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps
    )
    losses = []
    network.train()
    for step in range(steps):
        batch_loss = loss(*mixtures.draw(training.batch_size, rng))
        optimizer.zero_grad()
        batch_loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(float(batch_loss.detach()))
        progress(step + 1, steps)
    network.eval()
    return float(np.mean(losses[-max(1, steps // 10) :]))


def seeded_network(build: Callable[[], Network], rng: np.random.Generator) -> Network:
    """Build a network whose initial weights depend on `rng` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        return build()
