"""The schemes that divide training images, each by a partitioner of Flower Datasets.

Where a partitioner would drop images or leave a class to nobody, it is given a table on
which it cannot: a partition here is always disjoint and complete.
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

INNER_DRAWS = 5  # of inner-dirichlet; at alpha 0.01 about every third one succeeds


@dataclass(frozen=True)
class ShuffledImages:
    """The training images in random order.

    Attributes:
        rows: i64[N], their numbers.
        labels: i64[N], their classes as 0..K-1, of which every one occurs.
        client_ids: i64[N], whose each is; None where that is not known.
        seed: of everything that a scheme draws.
    """

    rows: Rows
    labels: Rows
    client_ids: Rows | None
    seed: int

    @property
    def num_classes(self) -> int:
        """K: classes that occur."""
        return int(self.labels.max()) + 1

    def rng(self, scheme: str) -> np.random.Generator:
        """Return the stream that a scheme draws from."""
        return stream(self.seed, "partition", scheme)


Scheme: TypeAlias = Callable[[ShuffledImages, PartitionConfig], list[Rows]]
"""Gives each client its rows, or raises ConfigError with the setting to change."""


def _iid(images: ShuffledImages, config: PartitionConfig) -> list[Rows]:
    from flwr_datasets.partitioner import IidPartitioner

    return _dealt(IidPartitioner(num_partitions=config.num_clients), images.rows)


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
        return _dealt(partitioner, images.rows, label=images.labels)
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
    for _ in range(INNER_DRAWS):
        partitioner = InnerDirichletPartitioner(
            partition_sizes=sizes,
            partition_by="label",
            alpha=config.alpha,
            seed=_draw(rng),
        )
        # A client whose classes have all run out has no probabilities left, only NaN.
        with contextlib.suppress(ValueError):
            return _dealt(partitioner, images.rows, label=images.labels)
    raise ConfigError(
        f"partition.alpha = {config.alpha:g} is too small for partition.scheme "
        f"'inner-dirichlet': clients want only classes that others have used up; "
        f"raise it, 0.05 and more work"
    )


def _shards(images: ShuffledImages, config: PartitionConfig) -> list[Rows]:
    from flwr_datasets.partitioner import ShardPartitioner

    each, total = config.shards_per_client, len(images.rows)
    shards = config.num_clients * each
    if shards > total:
        raise ConfigError(
            f"partition.shards-per-client must be at most "
            f"{total // config.num_clients} for {config.num_clients} clients and "
            f"{total} training images, got {each}"
        )
    # It deals out shards, not images: of images it would drop those that do not fill a
    # shard. All shards have the same size, give or take one image.
    partitioner = ShardPartitioner(
        num_partitions=config.num_clients,
        partition_by="label",
        num_shards_per_partition=each,
        shard_size=1,
        seed=_draw(images.rng("shards")),
    )
    numbers = np.arange(shards)
    by_class = images.rows[np.argsort(images.labels, kind="stable")]
    cut = np.array_split(by_class, shards)
    dealt = _dealt(partitioner, numbers, label=numbers)
    return [np.concatenate([cut[one] for one in part]) for part in dealt]


def _classes(images: ShuffledImages, config: PartitionConfig) -> list[Rows]:
    count, each = config.num_clients, config.classes_per_client
    known = images.num_classes
    if each > known:
        raise ConfigError(
            f"partition.classes-per-client must be at most {known}, the classes of "
            f"the training images, got {each}"
        )
    if count * each < known:
        raise ConfigError(
            f"partition.classes-per-client must be at least {-(-known // count)}, so "
            f"that {count} clients hold all {known} classes, got {each}"
        )
    rng = images.rng("classes")
    # The partitioner goes through the classes in order; this makes the order random.
    labels = rng.permutation(known)[images.labels]
    try:
        if count < known:
            return _class_blocks(images.rows, labels, count, each, _draw(rng))
        mode = "first-deterministic"  # every class is the first one of some client
        return _by_class(images.rows, labels, count, each, mode, _draw(rng))
    except ValueError:
        raise ConfigError(
            f"partition.scheme = 'classes' needs an image of a class for every client "
            f"that holds it, and {count} clients of {each} classes are too many for "
            f"{len(labels)} images: lower partition.num-clients or "
            f"partition.classes-per-client"
        ) from None


def _class_blocks(
    rows: Rows, labels: Rows, count: int, each: int, seed: int
) -> list[Rows]:
    """Give each of fewer clients than classes the next classes, round and round.

    Random classes would leave some to nobody, and their images out.
    """
    single = _by_class(rows, labels, count * each, 1, "deterministic", seed)
    return [
        np.concatenate(single[start : start + each])
        for start in range(0, count * each, each)
    ]


def _by_class(
    rows: Rows, labels: Rows, count: int, each: int, mode: str, seed: int
) -> list[Rows]:
    from flwr_datasets.partitioner import PathologicalPartitioner

    partitioner = PathologicalPartitioner(
        num_partitions=count,
        partition_by="label",
        num_classes_per_partition=each,
        class_assignment_mode=mode,
        seed=seed,
    )
    return _dealt(partitioner, rows, label=labels)


def _quantity_skew(images: ShuffledImages, config: PartitionConfig) -> list[Rows]:
    from flwr_datasets import partitioner

    kind = {
        "linear": partitioner.LinearPartitioner,
        "square": partitioner.SquarePartitioner,
        "exponential": partitioner.ExponentialPartitioner,
    }[config.scheme]
    try:
        return _dealt(kind(num_partitions=config.num_clients), images.rows)
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
    found = len(np.unique(images.client_ids))
    if found != config.num_clients:
        raise ConfigError(
            f"partition.scheme = 'natural-id': data.client-column names {found} "
            f"clients: set partition.num-clients = {found}, got {config.num_clients}"
        )
    partitioner = NaturalIdPartitioner(partition_by="client")
    # Its progress bar cannot be switched off.
    with contextlib.redirect_stderr(io.StringIO()):
        return _dealt(partitioner, images.rows, client=images.client_ids)


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


def _dealt(partitioner: Any, rows: Rows, **columns: Rows) -> list[Rows]:
    """Let a partitioner divide a table of rows; return those of each partition."""
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
