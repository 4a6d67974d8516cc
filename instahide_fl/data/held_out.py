"""Shares of the training set that no client receives.

Shares are disjoint. They are drawn in the order of `draw_held_out`, each from the
images that earlier ones left and from a random stream of its own, so that changing a
share leaves those before it as they are. A new share gets its place there, and only
there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from instahide_fl.config import DataConfig
from instahide_fl.errors import DataError
from instahide_fl.rng import stream

MEMBERSHIP = "membership"
VALIDATION = "validation"
_DIGITS = 10_000  # to which an error's suggested shares are rounded


class Share(NamedTuple):
    """A share of the training set that is to be held out.

    Attributes:
        name: The name in partition.json and of the random stream.
        setting: The setting that gives the size, for errors.
        size: The part of the images of each class, in [0, 1).
    """

    name: str
    setting: str
    size: float


@dataclass(frozen=True)
class HeldOut:
    """The training images that no client receives.

    Attributes:
        rows: i64[n], ascending row numbers of the training set, for each share by name,
            in the order in which they were drawn; shares of size 0 are absent.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def remaining(self, count: int) -> Tensor:
        """Return the rows that clients may hold, ascending.

        Args:
            count: The number of training images, N.

        Returns:
            i64[N - n], where n images are held out.
        """
        remains = torch.ones(count, dtype=torch.bool)
        for rows in self.rows.values():
            remains[rows] = False
        return remains.nonzero()[:, 0]

    def sizes(self) -> dict[str, int]:
        """Return the number of images of each share."""
        return {name: len(rows) for name, rows in self.rows.items()}

    def to_json(self) -> dict[str, list[int]]:
        """Return the rows of each share as plain values."""
        return {name: rows.tolist() for name, rows in self.rows.items()}

    def digest_with(self, dataset_digest: str) -> str:
        """Return the digest of a data set of which these rows are held out.

        Args:
            dataset_digest: The digest of the data set as it was read.

        Returns:
            The sha256, in hex; the data set's own digest where nothing is held out.
        """
        if not self:
            return dataset_digest
        hasher = hashlib.sha256(dataset_digest.encode())
        for name, rows in self.rows.items():
            hasher.update(f" {name} {len(rows)} ".encode())
            hasher.update(rows.numpy().tobytes())
        return hasher.hexdigest()


def draw_held_out(
    targets: Tensor,
    config: DataConfig,
    seed: int,
    class_names: Sequence[str],
    holdout_share: float = 0.0,
) -> HeldOut:
    """Draw the shares of the training set that the settings ask for.

    Of a class with n training images, a share takes share x n of them, rounded half up.

    Args:
        targets: i64[N], classes of all training images.
        config: The table `[data]`.
        seed: Seed of the draw.
        class_names: Names of the K classes, for errors.
        holdout_share: The setting `record.holdout-share`.

    Raises:
        DataError: A share has no image of some class, or takes all of them.
    """
    shares = (
        Share(MEMBERSHIP, "record.holdout-share", holdout_share),
        Share(VALIDATION, "data.validation-share", config.validation_share),
    )
    labels = targets.numpy()
    num_images = np.bincount(labels, minlength=len(class_names))
    remaining = np.arange(len(labels))
    rows: dict[str, Tensor] = {}
    for share in shares:
        if share.size == 0:
            continue
        num_remaining = np.bincount(labels[remaining], minlength=len(class_names))
        num_taken = np.floor(share.size * num_images + 0.5).astype(np.int64)
        _check_classes(share, num_taken, num_images, num_remaining, class_names)
        shuffled = stream(seed, "held-out", share.name).permutation(remaining)
        by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
        blocks = np.split(by_class, np.cumsum(num_remaining)[:-1])
        taken = np.concatenate(
            [block[:count] for block, count in zip(blocks, num_taken, strict=True)]
        )
        rows[share.name] = torch.from_numpy(np.sort(taken))
        remaining = np.setdiff1d(remaining, taken, assume_unique=True)
    return HeldOut(rows)


def _check_classes(
    share: Share,
    num_taken: np.ndarray[Any, np.dtype[np.int64]],
    num_images: np.ndarray[Any, np.dtype[np.int64]],
    num_remaining: np.ndarray[Any, np.dtype[np.int64]],
    class_names: Sequence[str],
) -> None:
    """Refuse a share that has no image of a class, or leaves none to the clients.

    Classes without any training image are passed over.

    Raises:
        DataError: There is such a class; with the shares that would do.
    """
    present = num_images > 0
    bad = present & ((num_taken == 0) | (num_taken >= num_remaining))
    if not bad.any():
        return
    number = int(np.flatnonzero(bad)[0])
    effect = (
        f"holds out none of the {num_images[number]} training images"
        if num_taken[number] == 0
        else f"leaves none of the {num_images[number]} training images to the clients,"
    )
    raise DataError(
        f"{share.setting} = {share.size:g} {effect} of class {class_names[number]!r}: "
        f"{_remedy(num_images[present], num_remaining[present])}"
    )


def _remedy(
    num_images: np.ndarray[Any, np.dtype[np.int64]],
    num_remaining: np.ndarray[Any, np.dtype[np.int64]],
) -> str:
    """Name the shares that take some image of every class and leave some."""
    low = math.ceil(float((0.5 / num_images).max()) * _DIGITS) / _DIGITS
    highest = float(((num_remaining - 0.5) / num_images).min())
    high = math.floor(highest * _DIGITS) / _DIGITS
    if low >= high:
        return "no share does both: the class needs more images, or set it to 0"
    return f"from {low:g} to below {high:g} each class has images in both"
