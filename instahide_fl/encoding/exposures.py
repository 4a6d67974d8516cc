"""Exposure counts: the number of distinct encodings that each private image is in.

Decoding gets better with every encoding that an image takes part in, as the encoded
image or as another's partner, in whatever round and epoch. So the client counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from instahide_fl.config import EncoderConfig
from instahide_fl.encoding.encoder import Encoder
from instahide_fl.types import EncodedBatch, EncodingKey, PrivateSplit


@dataclass(frozen=True)
class Exposures:
    """Exposure counters of one client; its tensors are written to.

    Attributes:
        counts: i64[N], the number of distinct encodings that each image took part in.
        used: u8[T,N], 1 for each of the T fixed encodings of each image that was made;
            T is 0 if keys are fresh every time.
    """

    counts: Tensor
    used: Tensor

    @classmethod
    def zeros(cls, images: int, config: EncoderConfig) -> Exposures:
        """Return counters before the first encoding.

        Args:
            images: Number of the client's images, N.
            config: The `[instahide]` table.
        """
        repeats = 0 if config.refresh == "epoch" else config.refresh
        used = torch.zeros(repeats, images, dtype=torch.uint8)
        return cls(torch.zeros(images, dtype=torch.int64), used)

    def count(self, key: EncodingKey) -> None:
        """Count a batch of encodings; a fixed one that was made before counts no more.

        Args:
            key: The batch's key; `private_index` refers to all of the client's images.
        """
        index = key.private_index
        if key.repeat is not None:
            encoded = index[:, 0]
            index = index[self.used[key.repeat, encoded] == 0]
            self.used[key.repeat, encoded] = 1
        images = index.flatten()  # [B,p] -> [B*p]: partners are exposed too
        self.counts.index_add_(0, images, torch.ones_like(images))

    def below(self, limit: int) -> Tensor:
        """Return the images that may still be encoded, i64[n]; all if limit is 0."""
        if not limit:
            return torch.arange(len(self.counts))
        return (self.counts < limit).nonzero()[:, 0]

    def beyond(self, limit: int) -> int:
        """Return how many images are in more than `limit` encodings; 0 if it is 0."""
        return int((self.counts > limit).sum()) if limit else 0

    def summary(self, limit: int) -> dict[str, float]:
        """Return what the server may know: figures over all images, no single counter.

        Args:
            limit: `instahide.max-exposures`; 0 for no limit.
        """
        figures = {
            "exposures_max": float(self.counts.max()),
            "exposures_mean": float(self.counts.double().mean()),
        }
        if limit:
            figures["exposures_beyond"] = float(self.beyond(limit))
        return figures


@dataclass(frozen=True)
class CountingEncoder:
    """An encoder that counts exposures.

    Attributes:
        inner: The encoder of the images that may still be encoded.
        exposures: The counters of all of the client's images.
        open_rows: i64[n], the rows of the images that may still be encoded.
    """

    inner: Encoder
    exposures: Exposures
    open_rows: Tensor

    def encode(
        self, index: Tensor, split: PrivateSplit, rng: np.random.Generator
    ) -> tuple[EncodedBatch, EncodingKey]:
        """Encode, and count.

        Args:
            index: Rows of the split, i64[B].
            split: The images that may still be encoded.
            rng: The generator that draws the keys.

        Returns:
            The batch, and its key, which refers to all of the client's images.
        """
        batch, key = self.inner.encode(index, split, rng)
        if len(self.open_rows) < len(self.exposures.counts):
            key = replace(key, private_index=self.open_rows[key.private_index])
        self.exposures.count(key)
        return batch, key
