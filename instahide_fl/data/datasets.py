"""Image data sets by name, as uint8 arrays that all processes of a machine share.

A data set is decoded once into `.npy` files in the cache folder (`dataset_cache`), and
every later use maps those files into memory.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from instahide_fl.config import DataConfig
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.cached_parts import CachedPart
from instahide_fl.data.data_report import DataFindings, DataReport, PixelFindings
from instahide_fl.data.dataset_cache import (
    cached_dataset,
    cached_images,
)
from instahide_fl.data.held_out import VALIDATION, HeldOut, draw_held_out
from instahide_fl.data.report_counts import build_report
from instahide_fl.data.sources.base import DatasetSource
from instahide_fl.data.sources.find import find_source
from instahide_fl.data.value_range import format_range
from instahide_fl.errors import DataError, InstaHideError
from instahide_fl.types import PrivateSplit


@dataclass(frozen=True)
class ImageDataset:
    """A data set for classification.

    Attributes:
        name: The value of `data.dataset`.
        train: Training images, which are divided among the clients, those included that
            are held out.
        test: Clean test images, which the server evaluates on.
        class_names: Names of the K classes.
        digest: sha256 (hex) of images and targets, of client ids where known, and of
            what is held out. It is the same wherever the images come from.
        client_ids: i64[N], the owner of each training image, numbered 0, 1, ... in the
            order of names (`data.client-column`); None if owners are unknown.
        report: What was read, what was left out and what to look at; None for a data
            set that was made in memory.
        held_out: The training images that no client receives.
    """

    name: str
    train: PrivateSplit
    test: PrivateSplit
    class_names: tuple[str, ...]
    digest: str
    client_ids: Tensor | None = None
    report: DataReport | None = None
    held_out: HeldOut = field(default_factory=HeldOut)

    @property
    def client_images(self) -> PrivateSplit:
        """The training images that clients may hold: all that are not held out."""
        if not self.held_out:
            return self.train
        return self.train.subset(self.held_out.remaining(len(self.train)))

    @property
    def validation(self) -> PrivateSplit | None:
        """The held-out images of `data.validation-share`; None without a share."""
        rows = self.held_out.rows.get(VALIDATION)
        return None if rows is None else self.train.subset(rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def load_dataset(
    config: DataConfig, seed: int = 0, holdout_share: float = 0.0
) -> ImageDataset:
    """Load a data set, decoding it into the cache on first use.

    Args:
        config: The table `[data]`, of which `augment` is not used.
        seed: Seed that divides training from test images where the source does not, and
            that draws what is held out.
        holdout_share: The setting `record.holdout-share`, of simulations.

    Raises:
        DataError: no such data set, or it cannot be read or does not fit the settings.
        OutputError: the cache folder cannot be written.
    """
    source = _open_source(config)
    cached = cached_dataset(config, source, seed)
    test, count, digest = cached.test, len(cached.class_names), cached.digest
    train, findings, rows = _keep_rows(config, cached.train, cached.findings)
    if rows is not None:
        identity = f"{digest} rows {rows.start}:{rows.stop}"
        digest = hashlib.sha256(identity.encode()).hexdigest()
    held_out = draw_held_out(
        train.targets, config, seed, cached.class_names, holdout_share
    )
    channels, height, width = train.images.shape[1:]
    report = build_report(
        dataset=config.dataset,
        parts={"train": train.contents, "test": test.contents},
        class_names=cached.class_names,
        image_shape=(channels, height, width),
        findings=findings,
    )
    return ImageDataset(
        name=config.dataset,
        train=PrivateSplit(train.images, train.targets, count, cached.statistics),
        test=PrivateSplit(test.images, test.targets, count, cached.statistics),
        class_names=cached.class_names,
        digest=held_out.digest_with(digest),
        client_ids=train.client_ids,
        report=report,
        held_out=held_out,
    )


@dataclass(frozen=True)
class PrivateImages:
    """The images that one client of a deployment holds.

    Attributes:
        split: The images and their classes.
        class_names: Names of the K classes.
        report: What was read, what was left out and what to look at.
    """

    split: PrivateSplit
    class_names: tuple[str, ...]
    report: DataReport


def load_private_images(config: DataConfig, cache: Path) -> PrivateImages:
    """Load the images that one client holds: a data set without its test part, if any.

    Args:
        config: The table `[data]`, of which `augment` is not used.
        cache: Folder to keep decoded images in.

    Raises:
        DataError: no such data set, or it cannot be read or does not fit the settings.
        OutputError: `cache` cannot be written.
    """
    source = _open_source(config)
    part, names, findings = cached_images(cache, config, source)
    check_agreed_range(config, findings.pixels)
    part, findings, _ = _keep_rows(config, part, findings)
    channels, height, width = part.images.shape[1:]
    report = build_report(
        dataset=config.dataset,
        parts={"train": part.contents},
        class_names=names,
        image_shape=(channels, height, width),
        findings=findings,
    )
    split = PrivateSplit(part.images, part.targets, len(names))
    return PrivateImages(split, names, report)


def check_agreed_range(config: DataConfig, pixels: PixelFindings) -> None:
    """Refuse a range that a deployed client chose from its own pictures.

    Args:
        config: The table `[data]`.
        pixels: What the client's pictures are.

    Raises:
        DataError: The pictures are deeper than 8 bits and `data.value-range` is auto.
    """
    if config.value_range == "auto" and pixels.num_deep:
        raise DataError(
            f"data.value-range: {pixels.num_deep:,} of this client's pictures are "
            f"deeper than 8 bits, and all clients of a deployment have to map values "
            f"alike: agree on a range and set data.value-range = LOW:HIGH in the run's "
            f"settings (for this client's pictures alone, data.value-range = "
            f"{format_range(pixels.value_range)})"
        )


def parse_train_rows(text: str, count: int) -> slice:
    """Return the rows that `data.train-rows` keeps.

    Args:
        text: `START:STOP`.
        count: Number of training images in the data set.

    Raises:
        DataError: the text is written otherwise, or not 0 <= START < STOP <= count.
    """
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text, re.ASCII)
    if not match:
        raise DataError(
            f"data.train-rows is written START:STOP, for instance 0:1000, got {text!r}"
        )
    start, stop = map(int, match.groups())
    if not start < stop <= count:
        raise DataError(
            f"data.train-rows must keep some of the {count} training images, so 0 <= "
            f"START < STOP <= {count}, got {text!r}"
        )
    return slice(start, stop)


def augmentation_for(
    config: DataConfig, image_shape: tuple[int, int, int]
) -> Augmentation | None:
    """Return the augmentation that `data.augment` asks for, or None.

    Args:
        config: The table `[data]`.
        image_shape: (C, H, W) of the private images.
    """
    choice = config.augment
    channels, height, _ = image_shape
    if choice == "auto":
        choice = "crop-flip" if channels == 3 else "none"
    if choice == "none":
        return None
    return Augmentation(padding=max(1, height // 8), flip=choice == "crop-flip")


def _open_source(config: DataConfig) -> DatasetSource:
    """Find the reader of a data set; what the operating system refuses is explained."""
    try:
        return find_source(config)
    except InstaHideError:
        raise
    except OSError as error:
        raise DataError(
            f"data.dataset: cannot open {config.dataset}: {error.strerror or error}: "
            f"check its name and whether you may read it"
        ) from None


def _keep_rows(
    config: DataConfig, part: CachedPart, findings: DataFindings
) -> tuple[CachedPart, DataFindings, slice | None]:
    """Keep the rows that `data.train-rows` names, and say so in the findings."""
    if not config.train_rows:
        return part, findings, None
    count = len(part.targets)
    rows = parse_train_rows(config.train_rows, count)
    source = findings.source
    origin = source.parts_from.get("train", source.parts_from.get("all", "all images"))
    kept_rows = (
        f"{origin}, of which data.train-rows keeps {rows.start}:{rows.stop} of {count}"
    )
    source = replace(source, parts_from={**source.parts_from, "train": kept_rows})
    return part.sliced(rows), replace(findings, source=source), rows
