"""Encoders: from rows of a private split to encoded batches and their one-time keys.

    encoder = InstaHideEncoder(EncoderConfig(num_mixed=4), MixingPool.photos())
    batch, key = encoder.encode(index, split, rng)

In deployment `rng` is `operating_system_stream()`; a seeded one is for simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from instahide_fl.config import EncoderConfig
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.federated_data import check_split_size
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.fused import fused_mix
from instahide_fl.encoding.mixing import (
    check_acceptance,
    draw_coefficients,
    draw_distinct,
    draw_sign_bits,
    mix_and_flip,
    mix_targets,
)
from instahide_fl.errors import ConfigError
from instahide_fl.types import (
    EncodedBatch,
    EncodingKey,
    PrivateSplit,
    unpack_signs,
)


class Encoder(Protocol):
    """Turns private images into what the client trains on."""

    def encode(
        self, index: Tensor, split: PrivateSplit, rng: np.random.Generator
    ) -> tuple[EncodedBatch, EncodingKey]:
        """Encode the images of these rows.

        Args:
            index: Rows of the split, i64[B]; each image is the first of its k.
            split: The client's own images, from which partners are drawn too.
            rng: The generator that draws the keys.

        Returns:
            The batch, and the key with which anyone can repeat it.
        """


@dataclass(frozen=True)
class MixingEncoder:
    """InstaHide and Mixup: draw a key, then apply it.

    Attributes:
        config: k, p, c1, c2 and the coefficient law.
        pool: The public images; needed if k > p.
        augmentation: Random changes to private images before mixing; None for none.
        flip_signs: Whether a random sign mask is applied.
    """

    config: EncoderConfig
    pool: MixingPool | None = None
    augmentation: Augmentation | None = None
    flip_signs: bool = True

    def __post_init__(self) -> None:
        if self.config.public_count and self.pool is None:
            raise ConfigError(
                f"{self.config.public_count} of num-mixed = {self.config.num_mixed} "
                f"images are public, so a pool is needed: give one, or set scope = "
                f'"inside"'
            )
        if self.config.num_mixed > 1:
            check_acceptance(self.config)

    def encode(
        self, index: Tensor, split: PrivateSplit, rng: np.random.Generator
    ) -> tuple[EncodedBatch, EncodingKey]:
        """Encode the images of these rows under fresh keys.

        Args:
            index: Rows of the split, i64[B].
            split: The client's own images, at least p of them.
            rng: The generator that draws coefficients, partners, public images, crops
                and signs.

        Raises:
            ConfigError: the split has fewer than p images.
            PoolError: the pool does not fit the images.
        """
        key = self.draw_key(index, split, rng)
        return self.apply_key(key, split), key

    def draw_key(
        self, index: Tensor, split: PrivateSplit, rng: np.random.Generator
    ) -> EncodingKey:
        """Draw one-time keys for these rows.

        Args:
            index: Rows of the split, i64[B].
            split: The client's own images.
            rng: The source of randomness.

        Raises:
            ConfigError: the split has fewer than p images.
            PoolError: the pool does not fit the images.
        """
        count, shape = len(index), tuple(split.images.shape[1:])
        private, public = self.config.private_count, self.config.public_count
        check_split_size(len(split), private)
        public_index = torch.empty(count, 0, dtype=torch.int64)
        coefficients = draw_coefficients(count, self.config, rng)
        encoded_rows = index.to("cpu", torch.int64)
        rows = encoded_rows[:, None]  # [B] -> [B,1]
        if private > 1:
            partners = draw_distinct(
                count, private - 1, len(split), rng, exclude=encoded_rows
            )
            rows = torch.cat([rows, partners], 1)  # [B,1], [B,p-1] -> [B,p]
        if self.pool is not None and public:
            self.pool.check_fits((shape[0], shape[1], shape[2]), public)
            public_index = draw_distinct(count, public, len(self.pool), rng)
        augmentation = self.augmentation
        applied = augmentation.draw(count * private, rng) if augmentation else None
        pixels = math.prod(shape)
        bits = draw_sign_bits(count, pixels, rng) if self.flip_signs else None
        return EncodingKey(
            coefficients=coefficients,
            private_index=rows,
            public_index=public_index,
            image_shape=(shape[0], shape[1], shape[2]),
            sign_bits=bits,
            augmentation=applied,
        )

    def apply_key(self, key: EncodingKey, split: PrivateSplit) -> EncodedBatch:
        """Mix and flip as the key says.

        Args:
            key: The key of B encodings.
            split: The images that the key's private rows refer to.

        Returns:
            images f32[B,C,H,W] and soft targets f32[B,K], on the device of the split.
        """
        device = split.images.device
        on_cpu = device.type == "cpu"
        images = self._mix_bytes(key, split) if on_cpu else self._mix(key, split)
        rows = split.image_rows(key.private_index).to(device)
        private = key.coefficients[:, : rows.shape[1]]
        return EncodedBatch(
            images, mix_targets(private, split.targets[rows], split.num_classes)
        )

    def _mix_bytes(self, key: EncodingKey, split: PrivateSplit) -> Tensor:
        """Mix and flip on the CPU, in one pass."""
        pool = self.pool.images if self.pool else split.images[:0]
        crop = None
        if self.augmentation is not None and key.augmentation is not None:
            applied, padding = key.augmentation, self.augmentation.padding
            crop = applied.offset.numpy(), applied.flip.numpy(), padding
        mixed = fused_mix(
            private=split.images.contiguous().numpy(),
            private_rows=split.image_rows(key.private_index).numpy(),
            private_statistics=split.statistics,
            public=pool.contiguous().numpy(),
            public_rows=key.public_index.numpy(),
            public_statistics=self.pool.statistics if self.pool else split.statistics,
            coefficients=key.coefficients.numpy(),
            sign_bits=None if key.sign_bits is None else key.sign_bits.numpy(),
            crop=crop,
        )
        return torch.from_numpy(mixed)

    def _mix(self, key: EncodingKey, split: PrivateSplit) -> Tensor:
        """Mix and flip by tensor operations, on the device of the split."""
        device, bits = split.images.device, key.sign_bits
        return mix_and_flip(
            self._sources(key, split),
            key.coefficients,
            # Packed, the mask of a 3x32x32 image is 384 bytes on its way to the device.
            None
            if bits is None
            else unpack_signs(bits.to(device), (len(key), *key.image_shape)),
        )

    def _sources(self, key: EncodingKey, split: PrivateSplit) -> Iterator[Tensor]:
        """Yield the k normalised images of each encoding, one column at a time."""
        device, rows = split.images.device, split.image_rows(key.private_index)
        for column in range(rows.shape[1]):
            images = split.images[rows[:, column].to(device)]
            if self.augmentation is not None and key.augmentation is not None:
                # Crops are drawn encoding by encoding: p of each, one after another.
                sources = torch.arange(len(key)) * rows.shape[1] + column
                images = self.augmentation.apply(
                    images, key.augmentation.select(sources)
                )
            yield split.statistics.normalise(images)
        if self.pool is not None:
            for public_rows in key.public_index.T:
                on_pool = public_rows.to(self.pool.images.device)
                public = self.pool.images[on_pool].to(device)
                yield self.pool.statistics.normalise(public)


class InstaHideEncoder(MixingEncoder):
    """Mixes k images and flips the sign of every pixel at random (InstaHide).

    Algorithm 2 of Huang et al., ICML 2020 (arXiv:2010.02772).

    Args:
        config: k, p, c1, c2 and the coefficient law.
        pool: The public images; needed where k > p.
        augmentation: Crops and flips of private images before mixing; None for none.

    Raises:
        ConfigError: encodings need public images and there is no pool, or hardly any
            draw of coefficients meets the bounds c1 and c2.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from instahide_fl import EncoderConfig, InstaHideEncoder, PrivateSplit
        >>> images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> split = PrivateSplit(images, torch.arange(8), num_classes=8)
        >>> encoder = InstaHideEncoder(EncoderConfig(scope="inside", num_mixed=4))
        >>> rows = torch.arange(4)
        >>> batch, key = encoder.encode(rows, split, np.random.default_rng(0))
        >>> batch.images.shape, batch.soft_targets.sum(dim=1).allclose(torch.ones(4))
        (torch.Size([4, 3, 32, 32]), True)
        >>> bool((encoder.apply_key(key, split).images == batch.images).all())
        True
    """

    def __init__(
        self,
        config: EncoderConfig,
        pool: MixingPool | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(config, pool, augmentation, flip_signs=True)


class MixupEncoder(MixingEncoder):
    """Mixes k images and leaves their signs alone (Mixup, Zhang et al., ICLR 2018).

    Args:
        config: k, p, c1, c2 and the coefficient law.
        pool: The public images; needed where k > p.
        augmentation: Crops and flips of private images before mixing; None for none.

    Raises:
        ConfigError: The same reasons as for `InstaHideEncoder`.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from instahide_fl import EncoderConfig, MixupEncoder, PrivateSplit
        >>> images = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8)
        >>> split = PrivateSplit(images, torch.arange(8), num_classes=8)
        >>> encoder = MixupEncoder(EncoderConfig(scope="inside", num_mixed=2))
        >>> rows = torch.arange(8)
        >>> batch, key = encoder.encode(rows, split, np.random.default_rng(0))
        >>> key.sign_bits is None, tuple(key.coefficients.shape)
        (True, (8, 2))
    """

    def __init__(
        self,
        config: EncoderConfig,
        pool: MixingPool | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(config, pool, augmentation, flip_signs=False)


class IdentityEncoder(MixingEncoder):
    """Augment and normalise only: training without any hiding."""

    def __init__(self, augmentation: Augmentation | None = None) -> None:
        unmixed = EncoderConfig(method="none", scope="inside", num_mixed=1)
        super().__init__(unmixed, None, augmentation, flip_signs=False)


@dataclass(frozen=True)
class FixedEncodings:
    """Reuses T fixed encodings of every image instead of drawing fresh keys.

    Each call of `encode` takes one of the T at random for the whole batch. Their keys
    are drawn anew from the same streams whenever they are needed, so nothing is stored.

    Attributes:
        encoder: The encoder that draws and applies the keys.
        count: Number of encodings of each image, T.
        stream_of: a function that returns always the same stream for t in 0..T-1.
    """

    encoder: MixingEncoder
    count: int
    stream_of: Callable[[int], np.random.Generator]

    def encode(
        self, index: Tensor, split: PrivateSplit, rng: np.random.Generator
    ) -> tuple[EncodedBatch, EncodingKey]:
        """Encode the images of these rows by one of their T keys.

        Args:
            index: Rows of the split, i64[B].
            split: The client's own images.
            rng: The generator that chooses one of the T.
        """
        key = self.draw_key(index, split, rng)
        return self.encoder.apply_key(key, split), key

    def draw_key(
        self, index: Tensor, split: PrivateSplit, rng: np.random.Generator
    ) -> EncodingKey:
        """Choose one of the T keys for these rows; arguments are those of `encode`."""
        repeat = int(rng.integers(self.count))
        # Drawn for all images: an image's key must not depend on the rest of its batch.
        all_rows = torch.arange(len(split))
        key = self.encoder.draw_key(all_rows, split, self.stream_of(repeat))
        return replace(key.select(index.cpu()), repeat=repeat)


def build_encoder(
    config: EncoderConfig,
    pool: MixingPool | None = None,
    augmentation: Augmentation | None = None,
) -> MixingEncoder:
    """Return the encoder that `instahide.method` names.

    Args:
        config: The `[instahide]` table.
        pool: The public images; needed for cross.
        augmentation: Random changes to private images before mixing.

    Raises:
        ConfigError: a pool is needed and missing, or the coefficient bounds are all but
            impossible to meet.
    """
    if config.method == "none":
        return IdentityEncoder(augmentation)
    encoders = {"mixup": MixupEncoder, "instahide": InstaHideEncoder}
    return encoders[config.method](config, pool, augmentation)
