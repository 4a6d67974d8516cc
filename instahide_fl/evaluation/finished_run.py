"""A finished run, opened again: its settings, its data, its pool and its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset, load_dataset
from instahide_fl.data.federated_data import load_pool
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import DataError, OutputError, PoolError
from instahide_fl.evaluation.encoded import training_pool
from instahide_fl.models.arrays import load_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.provenance import changed_since_start
from instahide_fl.run_folder import CONFIG, MODEL, PROVENANCE, RunFolder


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with the data it was made with.

    Attributes:
        folder: The run's folder.
        config: The run's settings.
        dataset: The training and test images, checked against the run's digest.
        model: The trained model, on the CPU.
        summary: The content of summary.json.
    """

    folder: RunFolder
    config: Config
    dataset: ImageDataset
    model: nn.Module
    summary: dict[str, Any]

    def partner_pool(self) -> MixingPool:
        """Return the pool that partners of a test image come from.

        It is the run's pool, or the training images if encodings used no pool.

        Raises:
            PoolError: the pool is missing, damaged, or another one than in the run.
        """
        pool = load_pool(self.config, self.dataset.image_shape)
        if pool is None:
            return training_pool(self.dataset.client_images)
        recorded = self.folder.read_json(PROVENANCE).get("pool_sha256")
        if pool.sha256 != recorded:
            source = self.config.pool.source
            subject = f"{self.folder.path}: the images of pool.source = {source!r} have"
            raise PoolError(
                changed_since_start(subject, str(recorded or ""), pool.sha256)
            )
        pool.verify()
        return pool


def open_finished_run(path: Path) -> FinishedRun:
    """Open a finished run and check that its data set is still the same.

    Args:
        path: The run's folder.

    Raises:
        OutputError: there is no run, it did not finish, or its files are damaged.
        ConfigError: its settings are not valid.
        DataError: its data set is missing, or another one by now.
    """
    folder = RunFolder.open_finished(path)
    config = folder.config()
    dataset = load_dataset(config.data, config.seed, config.record.holdout_share)
    recorded = folder.read_json(PROVENANCE).get("dataset_digest")
    if dataset.digest != recorded:
        subject = f"{path}: the pictures of data.dataset = {config.data.dataset!r} have"
        raise DataError(
            changed_since_start(subject, str(recorded or ""), dataset.digest)
        )
    model = load_trained_model(folder, config, dataset)
    return FinishedRun(folder, config, dataset, model, folder.summary())


def load_trained_model(
    folder: RunFolder, config: Config, dataset: ImageDataset
) -> nn.Module:
    """Build a run's network and load its final global parameters.

    Args:
        folder: The folder of a finished run.
        config: The run's settings.
        dataset: The run's data set, for the shape of images and the number of classes.

    Returns:
        A network from f32[B,C,H,W] to logits f32[B,K], on the CPU.

    Raises:
        OutputError: model.safetensors is missing, damaged, or of another network.
    """
    classes = dataset.train.num_classes
    model = build_model(config.network, dataset.image_shape, classes, config.seed)
    arrays = folder.load_model()
    try:
        load_arrays(model, arrays)
    except (KeyError, RuntimeError) as error:
        raise OutputError(
            f"{folder.path / MODEL} is not the model that {CONFIG} describes "
            f"({error}): one of the two was changed after the run"
        ) from None
    return model
