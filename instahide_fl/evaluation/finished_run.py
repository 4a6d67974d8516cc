"""Opening a finished run again: its settings, its data, its pool and its model."""

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
from instahide_fl.run_folder import CONFIG, MODEL, PROVENANCE, SUMMARY, RunFolder


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with the data it was made with.

    Attributes:
        folder: of the run.
        config: its settings.
        dataset: its training and test images, checked against the run's digest.
        model: trained, on the CPU.
        summary: what summary.json says.
    """

    folder: RunFolder
    config: Config
    dataset: ImageDataset
    model: nn.Module
    summary: dict[str, Any]

    def partner_pool(self) -> MixingPool:
        """Return where partners of a test image come from.

        That is the run's pool, or the training images if encodings used no pool.

        Raises:
            PoolError: the pool is missing, damaged, or another one than in the run.
        """
        pool = load_pool(self.config, self.dataset.image_shape)
        if pool is None:
            return training_pool(self.dataset.train)
        known = self.folder.read_json(PROVENANCE).get("pool_sha256")
        if pool.sha256 != known:
            raise PoolError(
                f"pool.source = {self.config.pool.source!r} now has sha256 "
                f"{pool.sha256[:12]}, the run in {self.folder.path} mixed with "
                f"{str(known)[:12]}: put that pool back"
            )
        pool.verify()
        return pool


def open_finished_run(path: Path) -> FinishedRun:
    """Open a finished run and check that its data set is still the same.

    Raises:
        OutputError: there is no run, it did not finish, or its files are damaged.
        ConfigError: its settings are not valid.
        DataError: its data set is missing, or another one by now.
    """
    folder = RunFolder.open_finished(path)
    config = folder.config()
    dataset = load_dataset(config.data, config.seed)
    known = folder.read_json(PROVENANCE).get("dataset_digest")
    if dataset.digest != known:
        raise DataError(
            f"data.dataset = {config.data.dataset!r} now has digest "
            f"{dataset.digest[:12]}, the run in {path} was trained on "
            f"{str(known)[:12]}: put that data set back"
        )
    model = load_trained_model(folder, config, dataset)
    return FinishedRun(folder, config, dataset, model, folder.read_json(SUMMARY))


def load_trained_model(
    folder: RunFolder, config: Config, dataset: ImageDataset
) -> nn.Module:
    """Build a run's network and load its final global parameters.

    Args:
        folder: of a finished run.
        config: the run's settings.
        dataset: the run's, for the shape of images and the number of classes.

    Returns:
        A module from f32[B,C,H,W] to logits f32[B,K], on the CPU.

    Raises:
        OutputError: model.safetensors is missing, damaged, or of another network.
    """
    classes = dataset.train.num_classes
    model = build_model(config.model, dataset.image_shape, classes, config.seed)
    arrays = folder.load_model()
    try:
        load_arrays(model, arrays)
    except (KeyError, RuntimeError) as error:
        raise OutputError(
            f"{folder.path / MODEL} is not the model that {CONFIG} describes "
            f"({error}): one of the two was changed after the run"
        ) from None
    return model
