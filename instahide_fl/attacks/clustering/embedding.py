"""A network that places slots showing the same image close to each other.

It sees the absolute values of an encoding, and the class and coefficients of a slot,
which steer every layer after the first (feature-wise scale and shift). So each image in
an encoding has a vector of its own. It learns by InfoNCE (van den Oord et al., 2018):
of a batch of pairs of encodings that share one image, find each one's partner among the
encodings for images of the same class.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from instahide_fl.attacks.attack import Advance
from instahide_fl.attacks.clustering.proxies import Proxies
from instahide_fl.attacks.clustering.slots import Slots
from instahide_fl.rng import torch_seed

# Width and stride of each convolution of 3 x 3.
LAYERS = ((32, 1), (48, 2), (48, 1), (64, 2), (64, 1))
DIMENSIONS = 128
CLASSES_IN_BATCH = 2
LEARNING_RATE = 2e-3
WARM_UP = 0.02  # of the steps
WEIGHT_DECAY = 1e-4
TEMPERATURE = 0.1  # to start from; learned
EMBEDDED_TOGETHER = 500


class SlotNetwork(nn.Module):
    """Convolutions on |encoding|, steered by what is known of the slot.

    Args:
        image_shape: C, H, W.
        conditions: length of what is known of a slot.
    """

    def __init__(self, image_shape: tuple[int, int, int], conditions: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for out, stride in LAYERS:
            self.convolutions.append(
                nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
            )
            self.norms.append(nn.BatchNorm2d(out))
            channels = out
            height, width = -(-height // stride), -(-width // stride)
        # The first layer is the largest and is not steered, which saves a third.
        self.steered = [out for out, _ in LAYERS[1:]]
        steering = nn.Linear(96, 2 * sum(self.steered))
        nn.init.normal_(steering.weight, std=0.02)
        nn.init.zeros_(steering.bias)
        self.steering = nn.Sequential(nn.Linear(conditions, 96), nn.ReLU(), steering)
        self.head = nn.Linear(channels * height * width, DIMENSIONS)

    def forward(self, magnitudes: Tensor, conditions: Tensor) -> Tensor:
        """Embed slots.

        Args:
            magnitudes: f32[S,C,H,W], absolute values of the encodings.
            conditions: f32[S,...], see `slots.conditions_of`.

        Returns:
            f32[S,128], rows of length 1.
        """
        steering = self.steering(conditions)[:, :, None, None].split(
            [2 * width for width in self.steered], 1
        )
        layers = zip(self.convolutions, self.norms, strict=True)
        # With the channels last, convolutions are faster on CPUs.
        values = magnitudes.contiguous(memory_format=torch.channels_last)
        for number, (convolution, norm) in enumerate(layers):
            values = norm(convolution(values))
            if number:
                scale, shift = steering[number - 1].chunk(2, 1)
                values = torch.addcmul(shift, values, 1 + scale)
            values = functional.relu(values)
        return functional.normalize(self.head(values.flatten(1)), dim=1)


def new_network(
    image_shape: tuple[int, int, int], num_classes: int, seed: int
) -> SlotNetwork:
    """Return an untrained network; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "slot network"))
        network = SlotNetwork(image_shape, 2 * num_classes + 2)
    return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, unused-ignore]


def train(
    network: SlotNetwork,
    proxies: Proxies,
    steps: int,
    pairs: int,
    rng: np.random.Generator,
    advance: Advance,
) -> float:
    """Train on pairs of fresh encodings.

    Args:
        network: is changed.
        proxies: images to encode.
        steps: of the optimizer.
        pairs: in a batch.
        rng: draws images and keys.
        advance: told the steps.

    Returns:
        The mean loss of the last tenth of the steps, less that of guessing: below 0 if
        anything was learned.
    """
    logit_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))
    optimizer = torch.optim.AdamW(
        [*network.parameters(), logit_scale], LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate_of(steps))
    network.train()
    gains: list[float] = []
    for step in range(steps):
        magnitudes, conditions, classes = proxies.pairs(pairs, CLASSES_IN_BATCH, rng)
        first, second = network(magnitudes, conditions).chunk(2)
        loss, guessing = contrastive_loss(first, second, classes, logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        gains.append(float(loss.detach()) - guessing)
        advance(step + 1, steps)
    network.eval()
    return float(np.mean(gains[-max(1, steps // 10) :]))


def contrastive_loss(
    first: Tensor, second: Tensor, classes: Tensor, scale: Tensor
) -> tuple[Tensor, float]:
    """Return the InfoNCE loss among slots of one class, both ways.

    Args:
        first: f32[B,d], rows of length 1.
        second: f32[B,d], their partners.
        classes: i64[B].
        scale: inverse temperature.

    Returns:
        The mean loss, and that of guessing.
    """
    others = classes[:, None] != classes
    similarity = (first @ second.T * scale).masked_fill(others, float("-inf"))
    own = torch.arange(len(first))
    forward = functional.cross_entropy(similarity, own)
    loss = (forward + functional.cross_entropy(similarity.T, own)) / 2
    return loss, float((~others).sum(1).log().mean())


def embed(network: SlotNetwork, slots: Slots) -> Tensor:
    """Return the vectors of all slots, f32[S,128]."""
    network.eval()
    parts = []
    with torch.no_grad():
        for part in torch.split(torch.arange(len(slots)), EMBEDDED_TOGETHER):
            magnitudes = slots.images[slots.encodings[part]].abs()
            parts.append(network(magnitudes, slots.conditions[part]))
    return torch.cat(parts)


def _rate_of(steps: int) -> Callable[[int], float]:
    """Warm up linearly, then follow half a cosine down to a small rate."""

    def factor(step: int) -> float:
        done = step / steps
        return min(1.0, done / WARM_UP + 0.05) * max(
            0.005, (1 + math.cos(math.pi * done)) / 2
        )

    return factor
