"""The schemes that divide training images, each by a partitioner of Flower Datasets.

A partition is always disjoint and complete. Some partitioners would drop images or give
a class to no client; they are called with a table for which they cannot.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from instahide_fl.config import PartitionConfig
from instahide_fl.errors import ConfigError
from instahide_fl.rng import stream

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

MAX_INNER_DRAWS = 5  # of inner-dirichlet; at alpha 0.01 about one in three succeeds


@dataclass(frozen=True)
class ShuffledImages:
    """The training images in random order.

    Attributes:
        rows: i64[N], the numbers of the images.
        labels: i64[N], classes 0..K-1, of which every one occurs.
        client_ids: i64[N], the owner of each image; None if owners are unknown.
        seed: Seed of everything that a scheme draws.
    """

    rows: Rows
    labels: Rows
    client_ids: Rows | None
    seed: int

    @property
    def num_classes(self) -> int:
        """The number of classes that occur, K."""
        return int(self.labels.max()) + 1

    def rng(self, scheme: str) -> np.random.Generator:
        """Return the random stream that a scheme draws from."""
        return stream(self.seed, "partition", scheme)


Scheme: TypeAlias = Callable[[ShuffledImages, PartitionConfig], list[Rows]]
"""Returns each client's rows, or raises ConfigError with the setting to change."""


def _iid(images: ShuffledImages, config: PartitionConfig) -> list[Rows]:
    from flwr_datasets.partitioner import IidPartitioner

    return _divide_rows(IidPartitioner(num_partitions=config.num_clients), images.rows)


def _dirichlet(images: ShuffledImages, config: PartitionConfig) -> list[Rows]:
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=config.num_clients,
        partition_by="label",
        alpha=config.alpha,
        min_partition_size=config.min_size,
        self_balancing=False,
        seed=_draw(images.rng("dirichlet")),
    )
    try:
        return _divide_rows(partitioner, images.rows, label=images.labels)
    except ValueError:
        raise ConfigError(
            f"partition.scheme = 'dirichlet' found no draw that gives each of "
            f"{config.num_clients} clients at least {config.min_size} images "
            f"(partition.min-size): lower it or partition.num-clients, or raise "
            f"partition.alpha = {config.alpha:g}"
        ) from None


def _inner_dirichlet(images: ShuffledImages, config: PartitionConfig) -> list[Rows]:
    from flwr_datasets.partitioner import InnerDirichletPartitioner

    count, rng = config.num_clients, images.rng("inner-dirichlet")
    sizes = [len(part) for part in np.array_split(images.rows, count)]
    for _ in range(MAX_INNER_DRAWS):
        partitioner = InnerDirichletPartitioner(
            partition_sizes=sizes,
            partition_by="label",
            alpha=config.alpha,
            seed=_draw(rng),
        )
        # A client whose classes have all run out has no probabilities left, only NaN.
        with contextlib.suppress(ValueError):
            return _divide_rows(partitioner, images.rows, label=images.labels)
    raise ConfigError(
        f"partition.alpha = {config.alpha:g} is too small for partition.scheme "
        f"'inner-dirichlet': clients want only classes that others have used up; "
        f"raise it, 0.05 and more work"
    )


def _shards(images: ShuffledImages, config: PartitionConfig) -> list[Rows]:
    from flwr_datasets.partitioner import ShardPartitioner

    per_client, total = config.shards_per_client, len(images.rows)
    num_shards = config.num_clients * per_client
    if num_shards > total:
        raise ConfigError(
            f"partition.shards-per-client must be at most "
            f"{total // config.num_clients} for {config.num_clients} clients and "
            f"{total} training images, got {per_client}"
        )
    # The partitioner divides numbers of shards instead of images, because it would drop
    # images that do not fill a shard. Shards here have the same size, or differ by one.
    partitioner = ShardPartitioner(
        num_partitions=config.num_clients,
        partition_by="label",
        num_shards_per_partition=per_client,
        shard_size=1,
        seed=_draw(images.rng("shards")),
    )
    numbers = np.arange(num_shards)
    by_class = images.rows[np.argsort(images.labels, kind="stable")]
    shards = np.array_split(by_class, num_shards)
    clients = _divide_rows(partitioner, numbers, label=numbers)
    return [np.concatenate([shards[number] for number in held]) for held in clients]


def _classes(images: ShuffledImages, config: PartitionConfig) -> list[Rows]:
    count, per_client = config.num_clients, config.classes_per_client
    num_classes = images.num_classes
    if per_client > num_classes:
        raise ConfigError(
            f"partition.classes-per-client must be at most {num_classes}, the classes "
            f"of the training images, got {per_client}"
        )
    if count * per_client < num_classes:
        least = -(-num_classes // count)  # rounded up
        raise ConfigError(
            f"partition.classes-per-client must be at least {least}, so that {count} "
            f"clients hold all {num_classes} classes, got {per_client}"
        )
    rng = images.rng("classes")
    # The partitioner goes through the classes in order; this makes the order random.
    labels = rng.permutation(num_classes)[images.labels]
    try:
        if count < num_classes:
            return _class_blocks(images.rows, labels, count, per_client, _draw(rng))
        return _by_class(
            images.rows,
            labels,
            count=count,
            per_client=per_client,
            mode="first-deterministic",  # every class is the first one of some client
            seed=_draw(rng),
        )
    except ValueError:
        raise ConfigError(
            f"partition.scheme = 'classes' needs an image of a class for every client "
            f"that holds it, and {count} clients of {per_client} classes are too many "
            f"for {len(labels)} images: lower partition.num-clients or "
            f"partition.classes-per-client"
        ) from None


def _class_blocks(
    rows: Rows, labels: Rows, count: int, per_client: int, seed: int
) -> list[Rows]:
    """Give each client the next classes in turn, where classes outnumber clients.

    If classes were random, some could go to no client, and with them their images.
    """
    num_blocks = count * per_client
    single_classes = _by_class(
        rows, labels, count=num_blocks, per_client=1, mode="deterministic", seed=seed
    )
    return [
        np.concatenate(single_classes[start : start + per_client])
        for start in range(0, num_blocks, per_client)
    ]


def _by_class(
    rows: Rows, labels: Rows, *, count: int, per_client: int, mode: str, seed: int
) -> list[Rows]:
    from flwr_datasets.partitioner import PathologicalPartitioner

    partitioner = PathologicalPartitioner(
        num_partitions=count,
        partition_by="label",
        num_classes_per_partition=per_client,
        class_assignment_mode=mode,
        seed=seed,
    )
    return _divide_rows(partitioner, rows, label=labels)


def _quantity_skew(images: ShuffledImages, config: PartitionConfig) -> list[Rows]:
    from flwr_datasets import partitioner

    kind = {
        "linear": partitioner.LinearPartitioner,
        "square": partitioner.SquarePartitioner,
        "exponential": partitioner.ExponentialPartitioner,
    }[config.scheme]
    try:
        return _divide_rows(kind(num_partitions=config.num_clients), images.rows)
    except ValueError:
        # Sizes are rounded down, and the partitioner refuses to give a client none.
        return [np.empty(0, np.int64)] * config.num_clients


def _natural_id(images: ShuffledImages, config: PartitionConfig) -> list[Rows]:
    from flwr_datasets.partitioner import NaturalIdPartitioner

    if images.client_ids is None:
        raise ConfigError(
            "partition.scheme = 'natural-id' needs a data set that says whose each "
            "image is: name its column in data.client-column"
        )
    num_owners = len(np.unique(images.client_ids))
    if num_owners != config.num_clients:
        raise ConfigError(
            f"partition.scheme = 'natural-id': data.client-column names {num_owners} "
            f"clients: set partition.num-clients = {num_owners}, got "
            f"{config.num_clients}"
        )
    partitioner = NaturalIdPartitioner(partition_by="client")
    # Its progress bar cannot be switched off.
    with contextlib.redirect_stderr(io.StringIO()):
        return _divide_rows(partitioner, images.rows, client=images.client_ids)


SCHEMES: dict[str, Scheme] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "inner-dirichlet": _inner_dirichlet,
    "shards": _shards,
    "classes": _classes,
    "linear": _quantity_skew,
    "square": _quantity_skew,
    "exponential": _quantity_skew,
    "natural-id": _natural_id,
}


def _draw(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _divide_rows(partitioner: Any, rows: Rows, **columns: Rows) -> list[Rows]:
    """Let a partitioner divide a table of rows, and return the rows of each client."""
    # Imported here: pandas, pyarrow and plotting come along and take seconds.
    import datasets

    partitioner.dataset = datasets.Dataset.from_dict({"row": rows, **columns})
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Each redraw for the minimum size is announced; only giving up matters.
        warnings.filterwarnings("ignore", "The specified min_partition_size")
        warnings.filterwarnings("ignore", "Specifying null_placement", FutureWarning)
        count = partitioner.num_partitions
        return [
            np.asarray(partitioner.load_partition(i)["row"][:], dtype=np.int64)
            for i in range(count)
        ]
