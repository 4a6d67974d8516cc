"""Clients that hold public images, simulated to try an attack out before it is made.

The adversary knows the images that it gives them, so it can tell how well settings of
its attack do behind the run's encoding and defence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from instahide_fl.attacks.layers.linear_layers import build_network
from instahide_fl.config import Config
from instahide_fl.data.pool import MixingPool
from instahide_fl.defenses.transforms import apply_transforms
from instahide_fl.encoding.encoder import Encoder, build_encoder
from instahide_fl.metrics.matching import match_one_to_one
from instahide_fl.models.arrays import live_arrays, shared_buffers
from instahide_fl.models.sign_invariance import standardised_absolute
from instahide_fl.training.local import LocalTrainer
from instahide_fl.training.private import PrivateTrainer
from instahide_fl.transcript.view import AdversaryView, Observation
from instahide_fl.types import EncodedBatch, EncodingKey, PrivateSplit


@dataclass(frozen=True)
class PublicClients:
    """Observations of clients whose images the adversary chose.

    Attributes:
        view: The adversary's view, with these clients in place of the real ones.
        encodings: The images that each trained on, f32[M,C,H,W].
    """

    view: AdversaryView
    encodings: tuple[Tensor, ...]

    def similarity(self, images: tuple[Tensor, ...]) -> float:
        """Return the mean correlation of reconstructions with what they are of.

        Args:
            images: The reconstruction of each client, f32[M,C,H,W], in any order.
        """
        folded = self.view.config.sign_invariant
        of_clients = [
            _matched_correlation(guess, truth, folded)
            for guess, truth in zip(images, self.encodings, strict=True)
        ]
        return sum(of_clients) / len(of_clients)


def simulate_clients(
    view: AdversaryView, observed: Observation, count: int, rng: np.random.Generator
) -> PublicClients:
    """Simulate updates like an observed one, of public images.

    Args:
        view: The adversary's view.
        observed: The update to imitate, with parameters; an aggregate is imitated by
            the mean of as many clients.
        count: The number of updates.
        rng: The generator of images, labels, keys and noise.

    Raises:
        PoolError: there are no public images of this shape.
        OutputError: the embedded ones cannot be kept.
    """
    config = view.config
    channels, height, _ = view.image_shape
    public = view.pool or MixingPool.photos(height, channels)
    public.check_fits(view.image_shape, observed.num_examples)
    network = build_network(config, view.image_shape, view.num_classes)
    encoder = _Remembering(build_encoder(config.instahide, view.pool))
    observations, encodings = [], []
    for number in range(count):
        updates, batches = [], []
        for _ in range(observed.clients):
            size = observed.num_examples // observed.clients
            split = _draw_split(view, public, size, rng)
            updates.append(_sent_update(config, network, observed, split, encoder, rng))
            batches += encoder.take()
        update = {
            name: torch.stack([sent[name] for sent in updates]).mean(0)
            for name in updates[0]
        }
        encodings.append(torch.cat([batch.images for batch in batches]))
        labels = torch.cat([batch.soft_targets for batch in batches])
        observations.append(
            replace(
                observed,
                client=f"public {number}",
                update=update,
                soft_targets=None if observed.soft_targets is None else labels,
            )
        )
    clients_view = replace(view, observations=tuple(observations))
    return PublicClients(clients_view, tuple(encodings))


class _Remembering:
    """An encoder that remembers what clients trained on."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._batches: list[EncodedBatch] = []

    def encode(
        self, index: Tensor, split: PrivateSplit, rng: np.random.Generator
    ) -> tuple[EncodedBatch, EncodingKey]:
        batch, key = self._encoder.encode(index, split, rng)
        self._batches.append(batch)
        return batch, key

    def take(self) -> list[EncodedBatch]:
        """Return the batches since the last call."""
        batches, self._batches = self._batches, []
        return batches


def _draw_split(
    view: AdversaryView, public: MixingPool, size: int, rng: np.random.Generator
) -> PrivateSplit:
    """Return public images with random labels, as if a client held them."""
    count = max(size, view.config.instahide.private_count)
    if view.config.train.mode == "update":
        count = size
    rows = rng.choice(len(public), count, replace=False)
    labels = rng.integers(0, view.num_classes, count)
    return PrivateSplit(
        public.images[torch.from_numpy(rows)],
        torch.from_numpy(labels),
        view.num_classes,
        view.statistics,
    )


def _sent_update(
    config: Config,
    network: nn.Module,
    observed: Observation,
    split: PrivateSplit,
    encoder: Encoder,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Return what a client with these images would send, by name."""
    defense = config.defense
    trainer = LocalTrainer(network, config.train)
    if defense.differential_privacy == "dp-sgd":
        trainer = PrivateTrainer(network, config.train, defense)
    arrays = {
        name: array.detach().clone() for name, array in live_arrays(network).items()
    }
    arrays |= observed.parameters or {}
    update = trainer.update(
        arrays, split, encoder, rng, learning_rate_factor=observed.learning_rate_factor
    )
    return apply_transforms(update.arrays, shared_buffers(network), defense, rng)


def _matched_correlation(guess: Tensor, truth: Tensor, folded: bool) -> float:
    """Return the mean correlation of images f32[M,C,H,W], paired as fits best."""
    if folded:
        guess, truth = standardised_absolute(guess), standardised_absolute(truth)
    unit = [_unit_vectors(images) for images in (guess, truth)]
    correlation = unit[0] @ unit[1].T  # [M,D] @ [D,M] -> [M,M]
    rows, columns = match_one_to_one(correlation)
    return float(correlation[rows, columns].mean())


def _unit_vectors(images: Tensor) -> Tensor:
    vectors = images.double().flatten(1)  # [M,C,H,W] -> [M,D]
    vectors = vectors - vectors.mean(1, keepdim=True)
    return torch.nn.functional.normalize(vectors, dim=1)
