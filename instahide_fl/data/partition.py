"""The division of training images among clients, by Flower Datasets' partitioners."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from instahide_fl.config import PartitionConfig
from instahide_fl.data.datasets import ImageDataset
from instahide_fl.data.held_out import HeldOut
from instahide_fl.data.partition_schemes import SCHEMES, ShuffledImages
from instahide_fl.errors import ConfigError
from instahide_fl.files import atomic_file, cache_folder
from instahide_fl.rng import stream

Partition: TypeAlias = list[Tensor]
"""The rows of each client's training images, i64[N_i]: disjoint and complete."""

CACHE_LAYOUT = 2  # raise it when a scheme draws otherwise or the files change


def partition_images(
    targets: Tensor,
    config: PartitionConfig,
    seed: int,
    client_ids: Tensor | None = None,
) -> Partition:
    """Divide the training images among clients.

    Args:
        targets: i64[N], classes of all training images.
        config: The table `[partition]`, with at least one client.
        seed: Seed of the division.
        client_ids: i64[N], the owner of each image, for scheme natural-id, where client
            i gets the images of the i-th smallest id.

    Raises:
        ConfigError: the scheme cannot give every client its minimum of images, or its
            settings contradict the data.
    """
    _check_counts(len(targets), config)
    _, labels = np.unique(targets.numpy(), return_inverse=True)
    rows = stream(seed, "partition", "order").permutation(len(targets))
    ids = None if client_ids is None else client_ids.numpy()[rows]
    images = ShuffledImages(rows, labels[rows], ids, seed)
    parts = SCHEMES[config.scheme](images, config)
    _check_sizes([len(part) for part in parts], config)
    return [torch.from_numpy(part) for part in parts]


def cached_partition(
    dataset: ImageDataset, config: PartitionConfig, seed: int
) -> Partition:
    """Divide training images by `partition_images`, once, and keep it in the cache.

    Images that are held out go to no client.

    Args:
        dataset: The data set whose training images are divided.
        config: The table `[partition]`.
        seed: Seed of the division.

    Raises:
        ConfigError: the division is not possible, as in `partition_images`.
        OutputError: the cache folder cannot be written.
    """
    made_from = [CACHE_LAYOUT, dataset.digest, config.model_dump(), seed]
    if config.scheme == "natural-id" and dataset.client_ids is not None:
        made_from.append(
            hashlib.sha256(dataset.client_ids.numpy().tobytes()).hexdigest()
        )
    name = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]
    path = cache_folder("partitions", f"{name}.npz")
    if not path.exists():
        parts = _divide(dataset, config, seed)
        sizes = [len(part) for part in parts]
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, rows=torch.cat(parts).numpy(), sizes=np.array(sizes))
    with np.load(path) as stored:
        rows, sizes = torch.from_numpy(stored["rows"]), stored["sizes"].tolist()
    return list(torch.split(rows, sizes))


def _divide(dataset: ImageDataset, config: PartitionConfig, seed: int) -> Partition:
    """Divide the training images that are not held out; rows count all of them."""
    targets, client_ids = dataset.train.targets, dataset.client_ids
    if not dataset.held_out:
        return partition_images(targets, config, seed, client_ids)
    remaining = dataset.held_out.remaining(len(targets))
    remaining_ids = None if client_ids is None else client_ids[remaining]
    parts = partition_images(targets[remaining], config, seed, remaining_ids)
    return [remaining[part] for part in parts]


def partition_to_json(
    partition: Partition,
    config: PartitionConfig,
    seed: int,
    client_ids: Tensor | None = None,
    held_out: HeldOut | None = None,
) -> str:
    """Return the partition as JSON text, for the run folder.

    It holds all settings of `[partition]`, the seed, and under `clients` the rows of
    each client. With scheme natural-id, `natural_ids` says who each client is: its
    number among the sorted values of `data.client-column`, counted from 0. Where images
    are held out, `held_out` has the rows of each share, in the order they were drawn.

    Args:
        partition: The rows of each client.
        config: The settings that the partition was made with.
        seed: The seed that the partition was made with.
        client_ids: i64[N], the owner of each image, for scheme natural-id.
        held_out: The training images that no client received; None for none.
    """
    description = {**config.model_dump(), "seed": seed}
    if held_out:
        description["held_out"] = held_out.to_json()
    if config.scheme == "natural-id" and client_ids is not None:
        description["natural_ids"] = [int(client_ids[rows[0]]) for rows in partition]
    return json.dumps({**description, "clients": [rows.tolist() for rows in partition]})


def count_labels(partition: Partition, targets: Tensor, num_classes: int) -> Tensor:
    """Count every client's images of every class.

    Args:
        partition: The rows of each of M clients.
        targets: i64[N], classes of all training images.
        num_classes: K.

    Returns:
        i64[M,K].
    """
    return torch.stack(
        [targets[rows].bincount(minlength=num_classes) for rows in partition]
    )


def _check_counts(images: int, config: PartitionConfig) -> None:
    count = config.num_clients
    if not 1 <= count <= images:
        raise ConfigError(
            f"partition.num-clients must be in 1..{images} (the training images), got "
            f"{count}"
        )
    # The sizes of natural clients are looked at afterwards, and equal shares are always
    # what was asked for.
    unchecked = ("natural-id", "iid")
    if config.scheme not in unchecked and count * config.min_size > images:
        raise ConfigError(
            f"partition.scheme = {config.scheme!r} cannot give each of {count} clients "
            f"{config.min_size} images (partition.min-size): there are only {images}; "
            f"lower partition.min-size or partition.num-clients"
        )


def _check_sizes(sizes: Sequence[int], config: PartitionConfig) -> None:
    smallest = min(sizes)
    if smallest >= config.min_size or config.scheme == "iid":
        return
    remedies = ["lower partition.min-size"] if smallest else []
    remedies += ["lower partition.num-clients"] * (config.scheme != "natural-id")
    raise ConfigError(
        f"partition.scheme = {config.scheme!r} gives one of {len(sizes)} clients "
        f"{smallest or 'no'} image{'s' * (smallest != 1)}, fewer than "
        f"partition.min-size = {config.min_size}: {' or '.join(remedies)}"
    )
