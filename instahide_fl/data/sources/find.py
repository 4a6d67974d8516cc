"""Finds the reader of the data set that the settings name."""

from __future__ import annotations

from pathlib import Path

from instahide_fl.config import DataConfig
from instahide_fl.data.sources.base import DatasetSource
from instahide_fl.data.sources.built_in import open_mnist_5k, open_noise
from instahide_fl.data.sources.hugging_face.source import open_hugging_face
from instahide_fl.data.sources.image_folder import open_image_folder
from instahide_fl.data.sources.shard_files import is_folder_of_shards
from instahide_fl.data.sources.tar_samples import holds_samples
from instahide_fl.data.sources.torchvision_files import TORCHVISION, open_torchvision
from instahide_fl.data.sources.webdataset import open_webdataset
from instahide_fl.errors import DataError


def find_source(config: DataConfig) -> DatasetSource:
    """Return the source that `data.dataset` names.

    Raises:
        DataError: No such data set, its files are missing, or a setting is given that
            this kind of data set does not use.
    """
    name = config.dataset
    kind, _, path = name.partition(":")
    is_sharded = kind == "webdataset" or (kind == "hf" and is_folder_of_shards(path))
    if config.config and (kind != "hf" or is_sharded):
        raise DataError(
            f"data.config: only hf: data sets have configurations, got "
            f"{config.config!r} for {name}: leave it empty"
        )
    if path and is_sharded:
        return open_webdataset(path, config)
    if kind == "hf" and path:
        return open_hugging_face(path, config)
    if kind == "imagefolder" and path:
        _refuse_shards(path)
        return open_image_folder(path, config)
    _refuse_parts_and_columns(config)
    if name == "mnist-5k":
        return open_mnist_5k()
    if name in TORCHVISION:
        return open_torchvision(name, config.root, config.download)
    if kind == "noise" and name != kind:
        return open_noise(name)
    hint = f": your own pictures are imagefolder:{name}" if Path(name).exists() else ""
    raise DataError(
        f"data.dataset must be mnist-5k, hf:PATH-OR-NAME, imagefolder:PATH, "
        f"webdataset:PATH, {', '.join(TORCHVISION)} or noise:NxCxHxW, got "
        f"{name!r}{hint}"
    )


def _refuse_parts_and_columns(config: DataConfig) -> None:
    for setting, value, noun in (
        ("train-part", config.train_part, "named parts"),
        ("test-part", config.test_part, "named parts"),
        ("image-column", config.image_column, "columns"),
        ("label-column", config.label_column, "columns"),
        ("client-column", config.client_column, "columns"),
    ):
        if value:
            raise DataError(
                f"data.{setting}: only hf:, webdataset: and imagefolder: data sets "
                f"have {noun}, got {value!r} for {config.dataset}: leave it empty"
            )


def _refuse_shards(path: str) -> None:
    if is_folder_of_shards(path) or holds_samples(Path(path).expanduser()):
        raise DataError(
            f"data.dataset: {path} is no folder of pictures, but a WebDataset (a "
            f"file with the class beside each picture, in .tar archives): give "
            f"webdataset:{path}"
        )
