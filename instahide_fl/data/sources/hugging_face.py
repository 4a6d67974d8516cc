"""Hugging Face image data sets: a local folder, or a name on the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instahide_fl.config import DataConfig
from instahide_fl.data.sources.base import (
    DatasetContent,
    DatasetPart,
    DatasetSource,
    StoredPicture,
    StoredPictures,
    file_listing,
)
from instahide_fl.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

HUB_TIMEOUT = 10  # seconds to find out whether the hub answers


def open_hugging_face(reference: str, config: DataConfig) -> DatasetSource:
    """Return a Hugging Face data set.

    Args:
        reference: a local folder, or a name on the hub.
        config: The table `[data]`.
    """
    client_column = config.client_column
    path = Path(reference).expanduser()
    identity = file_listing(path) if path.is_dir() else f"hub:{reference}"
    if client_column:
        identity = repr((identity, client_column))

    def read() -> DatasetContent:
        loaded = _load(reference, path)
        first = next(iter(loaded.values()))
        image, label = _columns(reference, first)
        class_names = [str(name) for name in first.features[label].names]
        parts = {
            name: _part(f"{reference} ({name})", part, image, label)
            for name, part in loaded.items()
        }
        if client_column:
            # Checked before any pixel is decoded; `first` holds the training images.
            ids = _client_ids(reference, first, client_column)
            name = next(iter(parts))
            parts[name] = replace(parts[name], client_ids=ids)
        return DatasetContent(parts, class_names)

    return DatasetSource(identity, read)


def _load(reference: str, path: Path) -> dict[str, Dataset]:
    import datasets

    datasets.disable_progress_bars()
    try:
        if path.is_dir():
            loaded = datasets.load_dataset(str(path))
        else:
            with _offline_if_unreachable(reference):
                loaded = datasets.load_dataset(reference)
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


@contextlib.contextmanager
def _offline_if_unreachable(reference: str) -> Iterator[None]:
    """Switch Hugging Face's libraries to offline mode if the hub does not answer.

    Otherwise they try for half a minute. They still find what they have downloaded
    before.
    """
    import datasets
    import huggingface_hub

    if _hub_answers(reference):
        yield
        return
    modules = [datasets.config, huggingface_hub.constants]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _hub_answers(reference: str) -> bool:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        huggingface_hub.HfApi().dataset_info(reference, timeout=HUB_TIMEOUT)
    except (HfHubHTTPError, HFValidationError):
        return True  # it answers with a refusal, which loading explains
    except Exception:  # of whichever network library this version is built on
        return False
    return True


def _columns(reference: str, part: Dataset) -> tuple[str, str]:
    """Return the names of the image column and the label column."""
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


def _part(title: str, part: Dataset, image: str, label: str) -> DatasetPart:
    import datasets

    targets = np.asarray(part[label], dtype=np.int64)
    if targets.size == 0 or targets.min() < 0:
        raise DataError(f"data.dataset: {title} has images without a label")
    # Files are read here and decoded by the threads.
    encoded = part.select_columns([image]).cast_column(
        image, datasets.Image(decode=False)
    )
    pictures = StoredPictures(
        title=title,
        count=len(part),
        fetch=lambda start, stop: list(map(_stored, encoded[start:stop][image])),
        name=lambda number: f"row {number}",
    )
    return DatasetPart(targets, pictures)


def _stored(row: dict[str, Any]) -> StoredPicture:
    data: bytes | None = row["bytes"]
    return Path(row["path"]) if data is None else data


def _client_ids(
    reference: str, part: Dataset, column: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Number the distinct values of a column in their sorted order."""
    import datasets

    if column not in part.features:
        raise DataError(
            f"data.client-column: hf:{reference} has no column {column!r}, only "
            f"{', '.join(part.features)}"
        )
    if not isinstance(part.features[column], datasets.Value | datasets.ClassLabel):
        raise DataError(
            f"data.client-column: {column!r} of hf:{reference} holds no names or "
            f"numbers, but {part.features[column]}"
        )
    values = list(part[column])
    missing = values.count(None)
    if missing:
        raise DataError(
            f"data.client-column: {missing} training images of hf:{reference} have no "
            f"{column!r}"
        )
    _, numbers = np.unique(np.asarray(values), return_inverse=True)
    return numbers.astype(np.int64)
