"""Making a challenge, with the truth apart from what is published.

Every private image is the first component of exactly T encodings. As in the authors'
code, an epoch mixes all n images with permutations of themselves; here no image ever
meets itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instahide_fl.challenge.files import PublishedChallenge, write_published
from instahide_fl.challenge.settings import (
    ChallengeSettings,
    PublishedData,
    PublishedPool,
)
from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset, augmentation_for, load_dataset
from instahide_fl.data.federated_data import load_pool
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import MixingEncoder, build_encoder
from instahide_fl.errors import ConfigError, DataError
from instahide_fl.files import atomic_folder, write_text
from instahide_fl.rng import is_cryptographic
from instahide_fl.transcript.truth import TRUTH, ClientTruth, write_truth
from instahide_fl.types import EncodedBatch, EncodingKey, PrivateSplit

CLIENT = "challenge"
ROUND = 1
ORIGIN = "origin.json"


@dataclass(frozen=True)
class Challenge:
    """A new challenge: what to publish, and what to keep secret.

    Attributes:
        published: The part for everybody.
        truth: Originals and keys, for scoring only.
        test_rows: i64[n], which test images of the data set the originals are.
        dataset: The data set's full name.
    """

    published: PublishedChallenge
    truth: ClientTruth
    test_rows: Tensor
    dataset: str


def make_challenge(
    config: Config,
    images: int,
    encodings_per_image: int,
    rng: np.random.Generator,
    dataset: ImageDataset | None = None,
) -> Challenge:
    """Draw private images and encode each of them several times.

    Args:
        config: The settings; of them `[data]`, `[pool]` and `[instahide]` are used.
        images: n, the number of private images. They are test images, so that an
            attacker may train on the training images, and balanced over classes.
        encodings_per_image: T.
        rng: The generator that draws images, keys and the order of encodings: the
            operating system's, unless the challenge is to be repeatable and insecure.
        dataset: The data set that `config` names; None loads it.

    Raises:
        ConfigError: settings contradict each other or ask for too few images.
        DataError: the data set is missing, or has too few test images.
        PoolError: the pool is missing, damaged, or does not fit.
    """
    check_counts(config, images)
    dataset = dataset or load_dataset(config.data, config.seed)
    pool = load_pool(config, dataset.image_shape)
    augmentation = augmentation_for(config.data, dataset.image_shape)
    encoder = build_encoder(config.instahide, pool, augmentation)
    rows = balanced_rows(dataset.test, images, rng)
    private = _copied(dataset.test, rows)
    epochs = [draw_epoch(encoder, private, rng) for _ in range(encodings_per_image)]
    # Otherwise the position of an encoding would tell which image it shows.
    order = torch.from_numpy(rng.permutation(images * encodings_per_image))
    key = EncodingKey.concatenate(epochs).select(order)
    batch = _applied(encoder, key, private)
    secure = is_cryptographic(rng)
    resolved = config.with_values(
        {"instahide.keys": "secure" if secure else "seeded"}
    ).resolved()
    settings = ChallengeSettings(
        images=images,
        encodings_per_image=encodings_per_image,
        keys="operating-system" if secure else "reproducible-insecure",
        data=_about_data(config, dataset),
        instahide=resolved.instahide,
        pool=None if pool is None else _about_pool(config, pool),
    )
    truth = _truth(private, batch, key)
    published = PublishedChallenge(batch.images, batch.soft_targets, settings)
    return Challenge(published, truth, rows, config.data.dataset)


def write_challenge(folder: Path, challenge: Challenge) -> None:
    """Write the published files, and the truth below `truth/`, in one step.

    Args:
        folder: The challenge's folder; it must not be there yet.
        challenge: The challenge to write.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_folder(folder) as temporary:
        write_published(temporary, challenge.published)
        write_truth(temporary, challenge.truth)
        origin = {
            "dataset": challenge.dataset,
            "test_rows": challenge.test_rows.tolist(),
        }
        write_text(temporary / TRUTH / ORIGIN, json.dumps(origin) + "\n")


def check_counts(config: Config, images: int) -> None:
    """Refuse too few images to draw partners from.

    Args:
        config: The settings.
        images: n, the number of private images.

    Raises:
        ConfigError: there are less than two for each private image of an encoding.
    """
    private = config.instahide.private_count if config.instahide.method != "none" else 1
    if images < 2 * private:
        raise ConfigError(
            f"--images must be at least {2 * private}, twice the private images of an "
            f"encoding, got {images}: take more, or mix fewer (--num-mixed)"
        )


def balanced_rows(split: PrivateSplit, count: int, rng: np.random.Generator) -> Tensor:
    """Draw images so that classes differ by one image at most.

    Args:
        split: The images to draw from.
        count: n, the number of images to draw.
        rng: The generator that draws them.

    Returns:
        i64[n], rows of the split, in random order.

    Raises:
        DataError: a class has too few images.
    """
    classes = split.num_classes
    sizes = np.full(classes, count // classes)
    sizes[rng.permutation(classes)[: count % classes]] += 1
    targets = split.targets.numpy()
    parts = []
    for number, size in enumerate(sizes):
        rows = np.flatnonzero(targets == number)
        if len(rows) < size:
            raise DataError(
                f"--images {count} needs {size} test images of class {number}, the "
                f"data set has {len(rows)}: take fewer"
            )
        parts.append(rng.permutation(rows)[:size])
    return torch.from_numpy(rng.permutation(np.concatenate(parts)))


def draw_epoch(
    encoder: MixingEncoder, split: PrivateSplit, rng: np.random.Generator
) -> EncodingKey:
    """Draw one encoding of each image, with permutations of the images as partners.

    Args:
        encoder: The encoder, which draws all but the partners.
        split: The n images.
        rng: The generator that draws the key.

    Returns:
        The key of n encodings; every column of its private index is a permutation, and
        no row names an image twice.
    """
    key = encoder.draw_key(torch.arange(len(split)), split, rng)
    columns = [np.arange(len(split))]
    for _ in range(key.private_index.shape[1] - 1):
        columns.append(_partners(columns, rng))
    return replace(key, private_index=torch.from_numpy(np.stack(columns, axis=1)))


def _partners(
    columns: list[NDArray[np.int64]], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return a permutation that gives no row an image which it has already.

    Rows in conflict swap with random ones until none is left: drawing whole
    permutations until one fits would hardly ever end for many columns.
    """
    taken = np.stack(columns)
    partner = rng.permutation(taken.shape[1])
    while True:
        conflicts = np.flatnonzero((taken == partner).any(axis=0))
        if not len(conflicts):
            return partner
        for row in conflicts:
            other = rng.integers(len(partner))
            partner[[row, other]] = partner[[other, row]]


def _truth(private: PrivateSplit, batch: EncodedBatch, key: EncodingKey) -> ClientTruth:
    return ClientTruth(
        round=ROUND,
        client=CLIENT,
        images=private.images,
        targets=private.targets,
        rows=torch.arange(len(private)),
        encodings=batch.images,
        soft_targets=batch.soft_targets,
        key=key,
        batch_sizes=(len(key),),
        others=private.images[:0],
        other_rows=private.targets[:0],
    )


def _copied(split: PrivateSplit, rows: Tensor) -> PrivateSplit:
    """Copy the images drawn, away from the memory that the data set shares."""
    located = split.image_rows(rows)
    return PrivateSplit(
        split.images[located].clone(),
        split.targets[located].clone(),
        split.num_classes,
        split.statistics,
    )


def _applied(
    encoder: MixingEncoder, key: EncodingKey, split: PrivateSplit, chunk: int = 1000
) -> EncodedBatch:
    parts = torch.split(torch.arange(len(key)), chunk)
    batches = [encoder.apply_key(key.select(rows), split) for rows in parts]
    return EncodedBatch(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.soft_targets for batch in batches]),
    )


def _about_data(config: Config, dataset: ImageDataset) -> PublishedData:
    statistics = dataset.test.statistics
    augment = config.data.augment
    if augment == "auto":
        augment = "crop-flip" if dataset.image_shape[0] == 3 else "none"
    return PublishedData(
        # Where a folder lies is nobody's business; its name says which data they are.
        dataset=Path(config.data.dataset.partition(":")[2] or dataset.name).name,
        image_shape=list(dataset.image_shape),
        mean=list(statistics.mean),
        std=list(statistics.std),
        augment=augment,
    )


def _about_pool(config: Config, pool: MixingPool) -> PublishedPool:
    return PublishedPool(
        source=Path(config.pool.source).name, images=len(pool), sha256=pool.sha256
    )
