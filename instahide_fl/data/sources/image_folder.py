"""Data sets of picture files, in one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instahide_fl.config import DataConfig
from instahide_fl.data.sources.base import (
    DatasetContent,
    DatasetPart,
    DatasetSource,
    StoredPictures,
    file_listing,
)
from instahide_fl.errors import DataError

TEST_NAMES = ("test", "val", "validation")  # the first that exists is taken
MAX_NAMED = 3  # files or classes that an error names


def open_image_folder(path: str, config: DataConfig) -> DatasetSource:
    """Find the pictures of `PATH/CLASS` or of `PATH/train/CLASS`, `PATH/test/CLASS`.

    Below a class, folders may be nested. Pictures are turned as their EXIF data say.

    Args:
        path: The folder.
        config: The table `[data]`.

    Raises:
        DataError: no such folder, no classes, a class without images, or images that
            belong to no class.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.dataset: imagefolder:{path} is no folder")
    part_folders = _part_folders(folder)
    class_names = _class_names(part_folders.get("train", folder))
    samples = {
        part: _samples(part_folder, class_names, complete=part != "test")
        for part, part_folder in part_folders.items()
    }
    files = [file for part in samples.values() for file, _ in part]

    def read() -> DatasetContent:
        parts = {
            part: _part(
                title=f"{folder.name} ({part})",
                folder=part_folders[part],
                samples=part_samples,
            )
            for part, part_samples in samples.items()
        }
        return DatasetContent(parts, class_names)

    # The names of classes are part of it: a class of the test part may have no files.
    return DatasetSource(
        f"imagefolder {class_names} {file_listing(folder, files)}", read
    )


def _part_folders(folder: Path) -> dict[str, Path]:
    """Return for each part the folder that holds its classes."""
    tests = [folder / name for name in TEST_NAMES if (folder / name).is_dir()]
    train = folder / "train"
    if train.is_dir() and tests:
        return {"train": train, "test": tests[0]}
    # Beside other folders "train" is a class, of railway pictures for instance.
    is_only_folder = _subfolders(folder) == ["train"]
    return {"all": train if is_only_folder else folder}


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__"))
    )


def _is_image(path: str) -> bool:
    from torchvision.datasets.folder import (  # type: ignore[import-untyped]
        IMG_EXTENSIONS,
    )

    file = Path(path)
    return file.suffix.lower() in IMG_EXTENSIONS and not file.name.startswith(".")


def _class_names(folder: Path) -> list[str]:
    names = _subfolders(folder)
    loose = sorted(path.name for path in folder.iterdir() if _is_image(path.name))
    if loose:
        raise DataError(
            f"data.dataset: {len(loose)} images in {folder} have no label, because "
            f"they lie in no class's folder ({_some(loose)}): put each into a folder "
            f"with its class's name"
        )
    if len(names) < 2:
        existing = f"only {names[0]}" if names else "none"
        raise DataError(
            f"data.dataset: imagefolder needs a folder for each of at least two "
            f"classes in {folder}, there is {existing}"
        )
    return names


def _samples(
    folder: Path, class_names: Sequence[str], *, complete: bool
) -> list[tuple[Path, int]]:
    """Return picture files with the numbers of their classes, in the order of names.

    Args:
        folder: The folder that holds the classes.
        class_names: Names of all classes of the data set.
        complete: Whether each class must have images here.
    """
    from torchvision.datasets.folder import make_dataset

    numbers = {name: number for number, name in enumerate(class_names)}
    unknown = sorted(set(_subfolders(folder)) - set(class_names))
    if unknown:
        raise DataError(
            f"data.dataset: {folder} has classes that train/ has not: {_some(unknown)}"
        )
    samples = make_dataset(folder, numbers, is_valid_file=_is_image, allow_empty=True)
    counts = np.bincount([number for _, number in samples], minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if not samples or (complete and empty):
        raise DataError(
            f"data.dataset: no images in {folder} for {len(empty)} of "
            f"{len(class_names)} classes: {_some(empty)}"
        )
    return [(Path(file), number) for file, number in samples]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")


def _part(title: str, folder: Path, samples: Sequence[tuple[Path, int]]) -> DatasetPart:
    files = [file for file, _ in samples]
    pictures = StoredPictures(
        title=title,
        count=len(files),
        fetch=lambda start, stop: files[start:stop],
        name=lambda number: str(files[number].relative_to(folder)),
    )
    targets = np.array([number for _, number in samples], dtype=np.int64)
    return DatasetPart(targets, pictures)
