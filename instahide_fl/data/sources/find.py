"""Finds the reader of the data set that the settings name."""

from __future__ import annotations

from instahide_fl.config import DataConfig
from instahide_fl.data.sources.base import DatasetSource
from instahide_fl.data.sources.built_in import open_mnist_5k, open_noise
from instahide_fl.data.sources.hugging_face import open_hugging_face
from instahide_fl.data.sources.image_folder import open_image_folder
from instahide_fl.data.sources.torchvision_files import TORCHVISION, open_torchvision
from instahide_fl.errors import DataError


def find_source(config: DataConfig) -> DatasetSource:
    """Return the source that `data.dataset` names.

    Raises:
        DataError: no such data set, its files are missing, or `data.client-column` is
            set for one that has no columns.
    """
    name = config.dataset
    kind, _, path = name.partition(":")
    if kind == "hf" and path:
        return open_hugging_face(path, config)
    if config.client_column:
        raise DataError(
            f"data.client-column: only hf: data sets have columns, got "
            f"{config.client_column!r} for {name}"
        )
    if name == "mnist-5k":
        return open_mnist_5k()
    if name in TORCHVISION:
        return open_torchvision(name, config.root, config.download)
    if kind == "imagefolder" and path:
        return open_image_folder(path, config)
    if kind == "noise" and name != kind:
        return open_noise(name)
    raise DataError(
        f"data.dataset must be mnist-5k, hf:PATH-OR-NAME, imagefolder:PATH, "
        f"{', '.join(TORCHVISION)} or noise:NxCxHxW, got {name!r}"
    )
