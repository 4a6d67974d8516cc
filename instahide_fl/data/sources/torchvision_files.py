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

from instahide_fl.data.sources.base import (
    DatasetContent,
    DatasetPart,
    DatasetSource,
    ImageBlocks,
    file_listing,
)
from instahide_fl.errors import DataError
from instahide_fl.files import cache_folder

# Names in data.dataset, and classes of torchvision.datasets.
MNIST_LIKE = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
CIFAR_LIKE = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
TORCHVISION = {**MNIST_LIKE, **CIFAR_LIKE}
# What torchvision's readers raise for damaged files.
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    RuntimeError,
    AssertionError,
    KeyError,
    zlib.error,
)
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def open_torchvision(name: str, root: str, download: bool) -> DatasetSource:
    """Find the files of a data set, downloading them if allowed and missing.

    Args:
        name: One of `TORCHVISION`.
        root: Folder in torchvision's layout, or with the four idx files of an
            MNIST-like set (.gz or not) directly in it; empty takes the cache folder.
            Only a download writes to it.
        download: Whether missing files may be downloaded.

    Raises:
        DataError: the files are missing or the download failed.
    """
    folder = Path(root).expanduser() if root else cache_folder("torchvision")
    files = _find_files(name, folder)
    if not files and download:
        _download(name, folder)
        files = _find_files(name, folder)
    if not files:
        raise DataError(
            f"data.dataset: no files of {name} in {folder} (looked for "
            f"{_layout(name)}): set data.root to the folder that has them, or "
            f"data.download = true"
        )

    def read() -> DatasetContent:
        try:
            return _read(name, folder, files)
        except READ_ERRORS as error:
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


def _find_files(name: str, folder: Path) -> list[Path]:
    """Return the files of a data set; none if any is missing."""
    if name in CIFAR_LIKE:
        kind = _torchvision_class(name)
        names = [file_name for file_name, _ in kind.train_list + kind.test_list]
        names.append(kind.meta["filename"])
        files = [folder / kind.base_folder / file_name for file_name in names]
        return files if all(map(Path.is_file, files)) else []
    for idx_folder in (folder / TORCHVISION[name] / "raw", folder):
        files = [
            path
            for file_name in IDX_FILES
            if (path := _unpacked_or_packed(idx_folder / file_name))
        ]
        if len(files) == len(IDX_FILES):
            return files
    return []


def _unpacked_or_packed(path: Path) -> Path | None:
    """Return a file, or else its .gz; unpacked is faster."""
    packed = path.with_name(f"{path.name}.gz")
    return next(filter(Path.is_file, (path, packed)), None)


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
    """Return the last line of an error, where torchvision's errors name the cause."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _read(name: str, folder: Path, files: list[Path]) -> DatasetContent:
    if name in CIFAR_LIKE:
        return _content(name, folder)
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
        return _content(name, Path(temporary))


def _content(name: str, folder: Path) -> DatasetContent:
    parts: dict[str, DatasetPart] = {}
    for part in ("train", "test"):
        with warnings.catch_warnings():
            # CIFAR's pickles are older than a rule of numpy 2.4.
            warnings.filterwarnings("ignore", r"dtype\(\): align")
            loaded = _torchvision_class(name)(str(folder), train=part == "train")
        pixels = np.asarray(loaded.data)
        # [N,H,W] -> [N,1,H,W], or [N,H,W,3] -> [N,3,H,W]
        images = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        parts[part] = DatasetPart(
            np.asarray(loaded.targets, dtype=np.int64),
            ImageBlocks.of(f"{name} ({part})", images),
        )
    return DatasetContent(parts, [str(name) for name in loaded.classes])
