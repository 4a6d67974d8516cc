"""Repeat the draws of a simulated client, from a candidate seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instahide_fl.config import EncoderConfig, TrainConfig
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import FixedEncodings, build_encoder
from instahide_fl.encoding.mixing import draw_coefficients
from instahide_fl.rng import client_stream, fixed_stream
from instahide_fl.training.local import batch_rows, draw_torch_seed
from instahide_fl.types import EncodingKey, PrivateSplit


@dataclass(frozen=True)
class SeededClient:
    """A simulated client in a round: everything that its draws depend on but the seed.

    Attributes:
        client: The client's key.
        round: The round, from 1.
        images_held: The number of images that the client holds.
        encoder: The `[instahide]` table.
        train: The `[train]` table.
        has_dropout: Whether the network has dropout, which draws a seed too.
    """

    client: str
    round: int
    images_held: int
    encoder: EncoderConfig
    train: TrainConfig
    has_dropout: bool

    def coefficients(self, seed: int, row: int) -> Tensor:
        """Return the coefficients of one encoding of the first batch.

        This is much faster than drawing whole keys.

        Args:
            seed: The candidate seed.
            row: The row of the encoding in the batch.

        Returns:
            The coefficients, f32[k].
        """
        rng = self._stream(seed)
        index = next(batch_rows(self.images_held, self.train, rng))
        if self.encoder.refresh != "epoch":
            number = int(rng.integers(self.encoder.refresh))
            rng, row = fixed_stream(seed, self.client, number), int(index[row])
        # The rows before it are drawn first; those after it do not change it.
        return draw_coefficients(row + 1, self.encoder, rng)[row]

    def key(
        self,
        seed: int,
        image_shape: tuple[int, int, int],
        pool: MixingPool | None,
        augmentation: Augmentation | None,
        batches: int = -1,
    ) -> EncodingKey:
        """Return the keys of a round's encodings, in the order of training.

        Args:
            seed: The candidate seed.
            image_shape: C, H, W.
            pool: The public images, if encodings mix any.
            augmentation: The augmentation of private images before mixing.
            batches: The number of batches to draw, from the first; -1 for all.
        """
        rng, split = self._stream(seed), _blank_split(self.images_held, image_shape)
        mixing = build_encoder(self.encoder, pool, augmentation)
        refresh = self.encoder.refresh
        encoder = (
            mixing
            if refresh == "epoch"
            else FixedEncodings(
                mixing, refresh, lambda number: fixed_stream(seed, self.client, number)
            )
        )
        keys: list[EncodingKey] = []
        for index in batch_rows(self.images_held, self.train, rng):
            if len(keys) == batches:
                break
            keys.append(encoder.draw_key(index, split, rng))
        return EncodingKey.concatenate(keys)

    def _stream(self, seed: int) -> np.random.Generator:
        rng = client_stream(seed, self.client, self.round)
        if self.has_dropout:
            draw_torch_seed(rng)
        return rng


def _blank_split(count: int, image_shape: tuple[int, int, int]) -> PrivateSplit:
    """Return images that take no memory: keys depend on number and shape alone."""
    images = torch.zeros(1, dtype=torch.uint8).expand(count, *image_shape)
    return PrivateSplit(images, torch.zeros(count, dtype=torch.int64), 1)
