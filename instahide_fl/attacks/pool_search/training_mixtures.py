"""The attacker's own mixtures: public images, mixed under the settings of a run.

What a network learns from them also holds for the victims' encodings, as far as the
victims' images resemble public ones. No sign is flipped: a network that has to ignore
signs takes absolute values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instahide_fl.config import DataConfig
from instahide_fl.data.datasets import augmentation_for, load_dataset
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import MixingEncoder, MixupEncoder
from instahide_fl.errors import AttackError
from instahide_fl.transcript.view import AdversaryView
from instahide_fl.types import EncodingKey, PrivateSplit


@dataclass(frozen=True)
class OwnMixtures:
    """A source of mixtures.

    Attributes:
        encoder: The victims' encoder, without its sign mask.
        split: Public images that stand in for private ones.
    """

    encoder: MixingEncoder
    split: PrivateSplit

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, EncodingKey]:
        """Return new mixtures f32[count,C,H,W], normalised, and their keys."""
        index = torch.from_numpy(rng.integers(len(self.split), size=count))
        batch, key = self.encoder.encode(index, self.split, rng)
        return batch.images, key


def own_mixtures(view: AdversaryView, pool: MixingPool, proxy: str) -> OwnMixtures:
    """Return a source of mixtures like those that the clients of a run make.

    Args:
        view: The adversary's view: settings, and the shape of images.
        pool: The pool that the clients mix with.
        proxy: The data set that stands in for private images, as in `data.dataset`;
            empty takes images of the pool.

    Raises:
        AttackError: the public images do not fit.
        DataError: the data set is missing or unreadable.
    """
    config = view.config.instahide
    split = _public_split(view, pool, proxy)
    if len(split) < config.private_count:
        raise AttackError(
            f"pool_search.proxy = {proxy!r} has {len(split)} images, an encoding mixes "
            f"{config.private_count} private ones: choose a larger one"
        )
    augmentation = augmentation_for(view.config.data, view.image_shape)
    return OwnMixtures(MixupEncoder(config, pool, augmentation), split)


def _public_split(view: AdversaryView, pool: MixingPool, proxy: str) -> PrivateSplit:
    if not proxy:
        return _as_split(pool)
    channels, height, _ = view.image_shape
    split = load_dataset(DataConfig(dataset=proxy, image_size=height)).train
    if tuple(split.images.shape[1:]) != view.image_shape:
        raise AttackError(
            f"pool_search.proxy = {proxy!r} has images of "
            f"{'x'.join(map(str, split.images.shape[1:]))}, the run "
            f"{'x'.join(map(str, view.image_shape))} (channels x height x width): "
            f"choose one with {channels} channels"
        )
    return split


def _as_split(pool: MixingPool) -> PrivateSplit:
    classes = torch.zeros(len(pool), dtype=torch.int64)
    return PrivateSplit(pool.images, classes, 1, pool.statistics)
