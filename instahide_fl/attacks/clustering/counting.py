"""Estimate how many private images a client has."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from instahide_fl.attacks.clustering.embedding import SlotNetwork, embed
from instahide_fl.attacks.clustering.proxies import Proxies
from instahide_fl.attacks.clustering.slots import Slots
from instahide_fl.types import PrivateSplit

HEAVY = 0.5  # share of the slots of a class, those with the largest coefficients
TRIED = (3, 6, 12, 24)  # images of each class in simulations
ENCODINGS = 2000  # in each


def estimate_images(
    slots: Slots,
    embedding: Tensor,
    network: SlotNetwork,
    proxies: Proxies,
    rng: np.random.Generator,
) -> int:
    """Estimate n from how similar the slots of a class are to each other.

    With n images of a class, one pair of slots in n shows the same image and is more
    similar. How much more, the attacker measures on encodings of its own.

    Args:
        slots: of one client.
        embedding: f32[S,d], of these slots.
        network: that embeds.
        proxies: images to simulate with.
        rng: draws them.
    """
    chances, means = [], []
    for count in TRIED:
        simulated = _simulated(count, slots, proxies, rng)
        found = _similarity(simulated, embed(network, simulated))
        chances += [1 / count] * len(found)
        means += list(found.values())
    slope, offset = np.polyfit(chances, means, 1)
    shares = slots.images_of_each_class(10_000).double() / 10_000
    same = {
        one: max(0.0, (mean - offset) / slope)
        for one, mean in _similarity(slots, embedding).items()
    }
    # Two slots of a class show one image with a chance of 1 / (n share): times the
    # share, and summed over the classes, that is their number over n.
    total = sum(float(shares[one]) * chance for one, chance in same.items())
    estimated: int = round(len(same) / max(total, 1e-3))
    return max(2, estimated)


def _similarity(slots: Slots, embedding: Tensor) -> dict[int, float]:
    """Return the mean cosine of heavy slots of each class that has some."""
    found = {}
    for one in torch.unique(slots.classes).tolist():
        own = (slots.classes == one).nonzero()[:, 0]
        order = slots.coefficients[own].argsort(descending=True, stable=True)
        heavy = embedding[own[order[: max(2, int(HEAVY * len(own)))]]]
        count = len(heavy)
        if count > 2:
            total = float(heavy.sum(0).square().sum()) - count
            found[one] = total / (count * (count - 1))
    return found


def _simulated(
    count: int, slots: Slots, proxies: Proxies, rng: np.random.Generator
) -> Slots:
    """Encode `count` proxies of each class, of as many classes as the client has."""
    classes = torch.unique(slots.classes)
    split = proxies.with_classes(rng)
    rows = [
        (split.targets == one).nonzero()[:, 0]
        for one in classes.tolist()
        if bool((split.targets == one).any())
    ]
    chosen = torch.cat(
        [own[torch.from_numpy(rng.permutation(len(own))[:count])] for own in rows]
    )
    images = PrivateSplit(
        split.images[chosen], split.targets[chosen], split.num_classes, split.statistics
    )
    index = torch.from_numpy(rng.integers(0, len(chosen), ENCODINGS))
    batch, _ = proxies.encoder.encode(index, images, rng)
    return Slots.of(batch.images, batch.soft_targets, slots.private)
