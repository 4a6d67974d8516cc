"""The data of a simulated federation: data set, partition and pool together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from instahide_fl.config import Config
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import ImageDataset, augmentation_for, load_dataset
from instahide_fl.data.partition import Partition, cached_partition
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import ConfigError
from instahide_fl.types import PrivateSplit


@dataclass(frozen=True)
class FederatedData:
    """The data of a federation.

    Attributes:
        dataset: Training images (of all clients) and clean test images.
        partition: The training images of each client.
        pool: Public images; None if no encoding uses any.
        augmentation: Crops and flips of private images; None for none.
    """

    dataset: ImageDataset
    partition: Partition
    pool: MixingPool | None
    augmentation: Augmentation | None

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by client key ("0", "1", ...)."""
        return {str(client): len(rows) for client, rows in enumerate(self.partition)}

    def split(self, client: int) -> PrivateSplit:
        """Return the images of a client, 0..num_clients-1."""
        return self.dataset.train.subset(self.partition[client])

    def to(self, device: str | torch.device, max_bytes: int) -> FederatedData:
        """Return the same data with training images and pool on a device, if they fit.

        Mixing then gathers pixels there. What does not fit stays where it is, and its
        images are sent batch by batch; training images go before the pool.

        Args:
            device: The device, for instance "cuda".
            max_bytes: Bytes that images may take on the device.
        """
        dataset, pool, train = self.dataset, self.pool, self.dataset.train
        if train.images.nbytes <= max_bytes:
            max_bytes -= train.images.nbytes
            dataset = replace(dataset, train=train.to(device))
        if pool is not None and pool.images.nbytes <= max_bytes:
            pool = pool.to(device)
        return replace(self, dataset=dataset, pool=pool)


def load_pool(config: Config, image_shape: tuple[int, int, int]) -> MixingPool | None:
    """Open the pool that the settings name, or None if no encoding uses one.

    Args:
        config: The settings, of which `pool.source` and `[instahide]` are used.
        image_shape: (C, H, W) of the private images.

    Raises:
        PoolError: the pool is missing, damaged, or does not fit the images.
    """
    if not config.instahide.uses_pool:
        return None
    channels, height, _ = image_shape
    if config.pool.source == "photos":
        pool = MixingPool.photos(height, channels)
    else:
        pool = MixingPool.open(Path(config.pool.source).expanduser())
    pool.check_fits(image_shape, config.instahide.public_count)
    return pool


def load_federated_data(config: Config) -> FederatedData:
    """Load everything a simulation needs and check that it fits together.

    Raises:
        ConfigError: the settings contradict the data.
        DataError: the data set is missing or unreadable.
        PoolError: the pool is missing, damaged, or does not fit.
        OutputError: the cache folder cannot be written.
    """
    dataset = load_dataset(config.data, config.seed, config.record.holdout_share)
    partition = cached_partition(dataset, config.partition, config.seed)
    if config.instahide.method != "none":
        check_split_size(min(map(len, partition)), config.instahide.private_count)
    pool = load_pool(config, dataset.image_shape)
    augmentation = augmentation_for(config.data, dataset.image_shape)
    return FederatedData(dataset, partition, pool, augmentation)


def check_split_size(images: int, private_count: int) -> None:
    """Refuse a client with fewer images than one encoding mixes.

    Raises:
        ConfigError: the smallest client cannot fill an encoding with distinct images.
    """
    if images < private_count:
        raise ConfigError(
            f"instahide.num-private: an encoding mixes {private_count} distinct "
            f"private images, but a client has only {images}: mix fewer, or use fewer "
            f"clients (partition.num-clients)"
        )
