"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 in the files that torchvision reads."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from instahide_fl.data.dataset_source import (
    DatasetContent,
    DatasetPart,
    DatasetSource,
    file_listing,
)
from instahide_fl.data.picture_decoding import part_from_arrays
from instahide_fl.errors import DataError
from instahide_fl.files import cache_folder

# Name in data.dataset: class of torchvision.datasets.
MNIST_LIKE = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
CIFAR_LIKE = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
TORCHVISION = {**MNIST_LIKE, **CIFAR_LIKE}
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def open_torchvision(
    name: str, root: str, download: bool, image_size: int
) -> DatasetSource:
    """Find the files of a data set, downloading them if allowed and missing.

    Args:
        name: one of `TORCHVISION`.
        root: folder in torchvision's layout, or with the four idx files of an
            MNIST-like set (.gz or not) directly in it; empty takes the cache folder.
            It is never written to, but for a download.
        download: whether missing files may be downloaded.
        image_size: side in pixels; 0 keeps their own.

    Raises:
        DataError: the files are missing or the download failed.
    """
    folder = Path(root).expanduser() if root else cache_folder("torchvision")
    files = _find(name, folder)
    if files is None and download:
        _download(name, folder)
        files = _find(name, folder)
    if files is None:
        raise DataError(
            f"data.dataset: no files of {name} in {folder} (looked for "
            f"{_layout(name)}): set data.root to the folder that has them, or "
            f"data.download = true"
        )
    found = files

    def read() -> DatasetContent:
        try:
            return _read(name, folder, found, image_size)
        except (
            *(OSError, EOFError, ValueError, TypeError, RuntimeError),
            *(AssertionError, KeyError, zlib.error),
        ) as error:
            raise DataError(
                f"data.dataset: the files of {name} in {folder} are damaged "
                f"({_reason(error)}): get them again"
            ) from None

    return DatasetSource(f"{name} {file_listing(folder, files)}", read)


def _torchvision_class(name: str) -> Any:
    # Imported here: torchvision does not load beside every build of torch.
    import torchvision.datasets  # type: ignore[import-untyped]

    return getattr(torchvision.datasets, TORCHVISION[name])


def _layout(name: str) -> str:
    if name in MNIST_LIKE:
        return f"{TORCHVISION[name]}/raw/{IDX_FILES[0]} and so on, or {IDX_FILES[0]}.gz"
    return f"{_torchvision_class(name).base_folder}/"


def _find(name: str, folder: Path) -> list[Path] | None:
    """Return the files of a data set, or None if any is missing."""
    if name in CIFAR_LIKE:
        kind = _torchvision_class(name)
        rows = [row[0] for row in kind.train_list + kind.test_list]
        files = [folder / kind.base_folder / one for one in rows]
        files.append(folder / kind.base_folder / kind.meta["filename"])
        return files if all(map(Path.is_file, files)) else None
    for place in (folder / TORCHVISION[name] / "raw", folder):
        candidates = [
            [place / one, place / f"{one}.gz"]  # unpacked is faster
            for one in IDX_FILES
        ]
        files = [next(filter(Path.is_file, pair), place) for pair in candidates]
        if place not in files:
            return files
    return None


def _download(name: str, folder: Path) -> None:
    try:
        _torchvision_class(name)(str(folder), download=True)
    except Exception as error:  # its urllib, tarfile and checksums raise anything
        raise DataError(
            f"data.dataset: no files of {name} in {folder}, and downloading them "
            f"failed ({_reason(error)}): copy them there, or set data.root to the "
            f"folder that has them"
        ) from None


def _reason(error: Exception) -> str:
    """Return the last line of an error, which in torchvision's is the telling one."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _read(
    name: str, folder: Path, files: list[Path], image_size: int
) -> DatasetContent:
    if name in CIFAR_LIKE:
        return _content(name, folder, image_size)
    # torchvision reads unpacked files in its own layout only: give it a folder of
    # links, and leave the user's alone.
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary, TORCHVISION[name], "raw")
        raw.mkdir(parents=True)
        for file in files:
            if file.suffix == ".gz":
                with gzip.open(file) as packed, (raw / file.stem).open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
            else:
                (raw / file.name).symlink_to(file.resolve())
        return _content(name, Path(temporary), image_size)


def _content(name: str, folder: Path, image_size: int) -> DatasetContent:
    parts: dict[str, DatasetPart] = {}
    for part in ("train", "test"):
        with warnings.catch_warnings():
            # CIFAR's pickles are older than a rule of numpy 2.4.
            warnings.filterwarnings("ignore", r"dtype\(\): align")
            loaded = _torchvision_class(name)(str(folder), train=part == "train")
        pixels = np.asarray(loaded.data)
        images = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        targets = np.asarray(loaded.targets)
        parts[part] = part_from_arrays(f"{name} ({part})", images, targets, image_size)
    return DatasetContent(parts, [str(one) for one in loaded.classes])
