"""Which client holds which training image, by Flower Datasets' partitioners."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from instahide_fl.config import PartitionConfig
from instahide_fl.errors import ConfigError
from instahide_fl.files import atomic_file, cache_folder
from instahide_fl.rng import stream

Partition: TypeAlias = list[Tensor]
"""For each client i64[N_i], rows of the training images: disjoint and complete."""


def partition_images(targets: Tensor, config: PartitionConfig, seed: int) -> Partition:
    """Divide the training images among clients.

    Args:
        targets: i64[N], classes of all training images.
        config: scheme and number of clients (at least 1).
        seed: repeats the division.

    Raises:
        ConfigError: more clients than images, or no draw gave every client its minimum.
    """
    count = config.num_clients
    if not 1 <= count <= len(targets):
        raise ConfigError(
            f"partition.num-clients must be in 1..{len(targets)} (the training "
            f"images), got {count}"
        )
    # Imported here: pandas, pyarrow and plotting come along and take seconds.
    import datasets

    rows = stream(seed, "partition", "order").permutation(len(targets))
    table = datasets.Dataset.from_dict(
        {"row": rows, "label": targets.numpy()[rows]},
    )
    partitioner = _partitioner(config, seed)
    partitioner.dataset = table
    try:
        with warnings.catch_warnings():
            # Each redraw for the minimum size is announced; only giving up matters.
            warnings.filterwarnings("ignore", "The specified min_partition_size")
            parts = [partitioner.load_partition(i)["row"][:] for i in range(count)]
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"partition.scheme = {config.scheme!r} cannot give each of {count} clients "
            f"{config.min_size} images (partition.min-size): {reason}"
        ) from None
    return [torch.tensor(part, dtype=torch.int64) for part in parts]


def cached_partition(
    targets: Tensor, dataset_digest: str, config: PartitionConfig, seed: int
) -> Partition:
    """Return `partition_images`, computed once on a machine and kept in the cache.

    Args:
        targets: i64[N], classes of all training images.
        dataset_digest: names the data set these are of.
        config: scheme and number of clients.
        seed: repeats the division.

    Raises:
        ConfigError: as `partition_images`.
        OutputError: the cache folder cannot be written.
    """
    identity = json.dumps([dataset_digest, config.model_dump(), seed])
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    path = cache_folder("partitions", f"{name}.npz")
    if not path.exists():
        parts = partition_images(targets, config, seed)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, *[part.numpy() for part in parts])
    with np.load(path) as stored:
        return [torch.from_numpy(stored[f"arr_{i}"]) for i in range(len(stored.files))]


def partition_to_json(partition: Partition, config: PartitionConfig, seed: int) -> str:
    """Return the partition as JSON text, for the run folder."""
    return json.dumps(
        {
            "scheme": config.scheme,
            "alpha": config.alpha,
            "seed": seed,
            "clients": [part.tolist() for part in partition],
        }
    )


def _partitioner(config: PartitionConfig, seed: int) -> Any:
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

    if config.scheme == "iid":
        return IidPartitioner(num_partitions=config.num_clients)
    draw = int(stream(seed, "partition", "dirichlet").integers(2**31))
    return DirichletPartitioner(
        num_partitions=config.num_clients,
        partition_by="label",
        alpha=config.alpha,
        min_partition_size=config.min_size,
        self_balancing=False,
        seed=draw,
    )
