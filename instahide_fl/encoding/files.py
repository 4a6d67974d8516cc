"""The encodings of a whole data set without a federation, and their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset, augmentation_for, load_dataset
from instahide_fl.data.federated_data import check_split_size, load_pool
from instahide_fl.encoding.encoder import MixingEncoder, build_encoder
from instahide_fl.errors import ConfigError
from instahide_fl.files import atomic_file
from instahide_fl.rng import operating_system_stream, stream
from instahide_fl.terminal import show_steps
from instahide_fl.types import EncodedBatch, EncodingKey, PrivateSplit

CHUNK = 1000  # images encoded at a time


@dataclass(frozen=True)
class EncodedDataset:
    """One encoding of each image, and all that it was made from.

    Attributes:
        batch: N encodings.
        key: The keys of these N encodings.
        encoder: The encoder that drew and applied the key.
        split: The images that the key's private rows refer to.
    """

    batch: EncodedBatch
    key: EncodingKey
    encoder: MixingEncoder
    split: PrivateSplit


def encode_dataset(
    config: Config,
    *,
    limit: int | None = None,
    seeded: bool = False,
    dataset: ImageDataset | None = None,
) -> EncodedDataset:
    """Encode training images as a single client that holds all of them would.

    Held-out images are not encoded.

    Args:
        config: The settings; `[data]`, `[pool]` and `[instahide]` are used.
        limit: Number of images to encode, the first ones; None for all.
        seeded: Whether keys come from `config.seed`, repeatable and insecure, instead
            of the operating system.
        dataset: The data set that `config` names; None loads it.

    Raises:
        ConfigError: the settings do not fit the data, or ask for several encodings.
        DataError: the data set is missing or unreadable.
        PoolError: the pool is missing, damaged, or does not fit.
    """
    if config.instahide.refresh != "epoch":
        raise ConfigError(
            f"instahide.refresh must be 'epoch' here, got {config.instahide.refresh}: "
            f"each image is encoded once"
        )
    dataset = dataset or load_dataset(
        config.data, config.seed, config.record.holdout_share
    )
    images = dataset.client_images
    check_split_size(len(images), config.instahide.private_count)
    pool = load_pool(config, dataset.image_shape)
    augmentation = augmentation_for(config.data, dataset.image_shape)
    encoder = build_encoder(config.instahide, pool, augmentation)
    rng = stream(config.seed, "encode") if seeded else operating_system_stream()
    count = min(limit or len(images), len(images))
    parts = torch.split(torch.arange(count), CHUNK)
    encoded = [
        encoder.encode(rows, images, rng) for rows in show_steps(parts, "encoding")
    ]
    batch = EncodedBatch(
        torch.cat([batch.images for batch, _ in encoded]),
        torch.cat([batch.soft_targets for batch, _ in encoded]),
    )
    key = EncodingKey.concatenate([key for _, key in encoded])
    return EncodedDataset(batch, key, encoder, images)


def save_encodings(path: Path, batch: EncodedBatch) -> None:
    """Write what may be released: `encodings` f32[N,C,H,W], `soft_targets` f32[N,K].

    Args:
        path: The .npz file to write.
        batch: N encodings.

    Raises:
        OutputError: the file cannot be written.
    """
    arrays = {
        "encodings": batch.images.numpy(),
        "soft_targets": batch.soft_targets.numpy(),
    }
    _save(path, arrays)


def save_key(path: Path, key: EncodingKey) -> None:
    """Write the key, with which anyone can decode the encodings, for its owner alone.

    Args:
        path: The .npz file to write. It holds `coefficients`, `private_index`,
            `public_index`, `signs` and, if images were augmented, `crop_offset` and
            `crop_flip`.
        key: The keys of N encodings.

    Raises:
        OutputError: the file cannot be written.
    """
    arrays = {
        "coefficients": key.coefficients.numpy(),
        "private_index": key.private_index.numpy(),
        "public_index": key.public_index.numpy(),
        "signs": key.signs.numpy(),
    }
    if key.augmentation is not None:
        arrays["crop_offset"] = key.augmentation.offset.numpy()
        arrays["crop_flip"] = key.augmentation.flip.numpy()
    _save(path, arrays, private=True)


def _save(path: Path, arrays: dict[str, Any], *, private: bool = False) -> None:
    opened = atomic_file(path, private=private)
    with opened as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
