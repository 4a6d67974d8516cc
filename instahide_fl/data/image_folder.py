"""Pictures in a folder per class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from instahide_fl.data.dataset_source import (
    DatasetContent,
    DatasetPart,
    DatasetSource,
    ImageBlock,
    file_listing,
)
from instahide_fl.data.picture_decoding import (
    GREY_MODES,
    UndecodedPictures,
    decode_pictures,
)
from instahide_fl.errors import DataError

TEST_NAMES = ("test", "val", "validation")  # the first that exists is taken
NAMED = 3  # files or classes that an error names


def open_image_folder(path: str, image_size: int) -> DatasetSource:
    """Find the pictures of `PATH/CLASS` or of `PATH/train/CLASS`, `PATH/test/CLASS`.

    Below a class, folders may be nested. Pictures are turned as their EXIF data say.

    Args:
        path: the folder.
        image_size: side in pixels to resize to; 0 keeps their own size.

    Raises:
        DataError: no such folder, no classes, a class without images, or images that
            belong to no class.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.dataset: imagefolder:{path} is no folder")
    places = _places(folder)
    class_names = _classes(places.get("train", folder))
    rows = {
        part: _samples(place, class_names, complete=part != "test")
        for part, place in places.items()
    }
    files = [file for samples in rows.values() for file, _ in samples]

    def read() -> DatasetContent:
        grey = _all_grey(files)
        parts = {
            part: _part(f"{folder.name} ({part})", places[part], samples, grey, size)
            for part, samples in rows.items()
        }
        return DatasetContent(parts, class_names)

    size = image_size
    # Which classes exist is part of it: a class of the test part may hold nothing.
    return DatasetSource(
        f"imagefolder {class_names} {file_listing(folder, files)}", read
    )


def _places(folder: Path) -> dict[str, Path]:
    """Return the folders that hold classes, by part."""
    tests = [folder / name for name in TEST_NAMES if (folder / name).is_dir()]
    train = folder / "train"
    if train.is_dir() and tests:
        return {"train": train, "test": tests[0]}
    # Beside other folders "train" is a class, of railway pictures for instance.
    alone = _folders(folder) == ["train"]
    return {"all": train if alone else folder}


def _folders(folder: Path) -> list[str]:
    return sorted(
        one.name
        for one in folder.iterdir()
        if one.is_dir() and not one.name.startswith((".", "__"))
    )


def _is_image(path: str) -> bool:
    from torchvision.datasets.folder import (  # type: ignore[import-untyped]
        IMG_EXTENSIONS,
    )

    file = Path(path)
    return file.suffix.lower() in IMG_EXTENSIONS and not file.name.startswith(".")


def _classes(folder: Path) -> list[str]:
    names = _folders(folder)
    loose = sorted(one.name for one in folder.iterdir() if _is_image(one.name))
    if loose:
        raise DataError(
            f"data.dataset: {len(loose)} images in {folder} have no label, because "
            f"they lie in no class's folder ({_some(loose)}): put each into a folder "
            f"with its class's name"
        )
    if len(names) < 2:
        found = f"only {names[0]}" if names else "none"
        raise DataError(
            f"data.dataset: imagefolder needs a folder for each of at least two "
            f"classes in {folder}, there is {found}"
        )
    return names


def _samples(
    folder: Path, class_names: Sequence[str], *, complete: bool
) -> list[tuple[Path, int]]:
    """Return the files of each class and its number, in the order of their names.

    Args:
        folder: holds the classes.
        class_names: those that are known.
        complete: whether each of them must have images here.
    """
    from torchvision.datasets.folder import make_dataset

    numbers = {name: number for number, name in enumerate(class_names)}
    unknown = sorted(set(_folders(folder)) - set(class_names))
    if unknown:
        raise DataError(
            f"data.dataset: {folder} has classes that train/ has not: {_some(unknown)}"
        )
    found = make_dataset(folder, numbers, is_valid_file=_is_image, allow_empty=True)
    counts = np.bincount([number for _, number in found], minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if not found or (complete and empty):
        raise DataError(
            f"data.dataset: no images in {folder} for {len(empty)} of "
            f"{len(class_names)} classes: {_some(empty)}"
        )
    return [(Path(file), number) for file, number in found]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _part(
    title: str,
    folder: Path,
    samples: Sequence[tuple[Path, int]],
    grey: bool,
    image_size: int,
) -> DatasetPart:
    files = [file for file, _ in samples]
    pictures = UndecodedPictures(
        title,
        len(files),
        lambda start, stop: files[start:stop],
        _open,
        lambda number: str(files[number].relative_to(folder)),
        grey,
    )
    targets = np.array([number for _, number in samples], dtype=np.int64)
    decode: Callable[[], Iterator[ImageBlock]] = partial(
        decode_pictures, pictures, image_size
    )
    return DatasetPart(targets, decode)


def _open(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return ImageOps.exif_transpose(picture)


def _all_grey(files: Sequence[Path]) -> bool:
    """Tell whether no file is coloured; the first coloured one ends the search."""
    return not any(map(_coloured, files))


def _coloured(file: Path) -> bool:
    try:
        with Image.open(file) as picture:  # reads the header only
            return picture.mode not in GREY_MODES
    except (OSError, ValueError, SyntaxError):
        return False  # reported with all others when pixels are decoded
