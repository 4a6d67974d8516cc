"""The evaluation of global arrays in batches that any process of a run may take.

Batches are the same whoever evaluates them, and their figures are added up in the order
of the images: so a run's figures are the same bits on any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import MixingEncoder, build_encoder
from instahide_fl.errors import ConfigError
from instahide_fl.evaluation.clean import BATCH_SIZE, BatchFigures, evaluate_batch
from instahide_fl.evaluation.encoded import (
    evaluate_encoded_batch,
    inference_config,
    training_pool,
)
from instahide_fl.models.arrays import load_arrays
from instahide_fl.rng import stream
from instahide_fl.types import PrivateSplit

TEST, VALIDATION, ENCODED = "test", "validation", "encoded"


@dataclass(frozen=True, slots=True)
class Batch:
    """Some of the images that a run evaluates on.

    Attributes:
        part: `test`, `validation`, or `encoded`: encodings of test images.
        number: The batch's number in its part, 0, 1, ...
    """

    part: str
    number: int


@runtime_checkable
class EvaluatesBatches(Protocol):
    """Evaluates batches: one process, or a Flower `Grid` that has workers for it."""

    def evaluate_batches(
        self, arrays: Mapping[str, Tensor], round_number: int, batches: Sequence[Batch]
    ) -> list[BatchFigures]:
        """Evaluate global arrays after a round.

        Args:
            arrays: The global arrays by name.
            round_number: 1, 2, ...; it names the stream of encodings' keys.
            batches: The batches to evaluate.

        Returns:
            The figures of each batch, in the same order.
        """


class BatchEvaluator:
    """Evaluates batches in this process.

    Args:
        model: A network of the run's shape, on its device; its arrays are overwritten.
        dataset: The run's data.
        config: The run's settings.
        pool: The run's pool; None if encodings use none.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: ImageDataset,
        config: Config,
        pool: MixingPool | None,
    ) -> None:
        self._model, self._config = model, config
        self._dataset, self._pool = dataset, pool
        self._images = evaluated_images(dataset)

    def evaluate_batches(
        self, arrays: Mapping[str, Tensor], round_number: int, batches: Sequence[Batch]
    ) -> list[BatchFigures]:
        """Evaluate global arrays; see `EvaluatesBatches`."""
        self.load(arrays)
        return [self.evaluate(batch, round_number) for batch in batches]

    def load(self, arrays: Mapping[str, Tensor]) -> None:
        """Copy the global arrays into the network.

        Args:
            arrays: The global arrays by name.
        """
        load_arrays(self._model, arrays)

    def evaluate(self, batch: Batch, round_number: int) -> BatchFigures:
        """Evaluate a batch with the arrays that were loaded last.

        Args:
            batch: The batch.
            round_number: 1, 2, ...
        """
        start = batch.number * BATCH_SIZE
        if batch.part != ENCODED:
            rows = slice(start, start + BATCH_SIZE)
            return evaluate_batch(self._model, self._images[batch.part], rows)
        test = self._images[TEST]
        return evaluate_encoded_batch(
            self._model,
            test,
            torch.arange(start, min(start + BATCH_SIZE, len(test))),
            encoder=self._encoder,
            encodings=self._config.evaluated_encodings,
            # A stream for each batch: any process may take it, in any order.
            rng=stream(
                self._config.seed, "evaluation-encodings", round_number, batch.number
            ),
        )

    @cached_property
    def _encoder(self) -> MixingEncoder:
        return evaluation_encoder(self._config, self._pool, self._dataset)


def evaluated_images(dataset: ImageDataset) -> dict[str, PrivateSplit]:
    """Return the clean images that a run evaluates on, by part.

    Args:
        dataset: The run's data.
    """
    images = {TEST: dataset.test}
    if dataset.validation is not None:
        images[VALIDATION] = dataset.validation
    return images


def batches_of(part: str, num_images: int) -> list[Batch]:
    """Return the batches of a part.

    Args:
        part: The part's name, see `Batch`.
        num_images: The number of its images.
    """
    return [Batch(part, number) for number in range(-(-num_images // BATCH_SIZE))]


def evaluation_encoder(
    config: Config, pool: MixingPool | None, dataset: ImageDataset
) -> MixingEncoder:
    """Return the encoder of test images for `train.evaluate-encodings`.

    Args:
        config: The run's settings.
        pool: The run's pool; None if encodings use none: then partners of a test image
            are training images.
        dataset: The run's data.

    Raises:
        ConfigError: hardly any random coefficients meet the bounds.
    """
    settings = inference_config(config.instahide)
    if pool is None:
        pool = training_pool(dataset.client_images)
    try:
        return build_encoder(settings, pool)
    except ConfigError as error:
        raise ConfigError(
            f"train.evaluate-encodings encodes a test image as the only private one: "
            f"{error}, or set train.evaluate-encodings = 0"
        ) from None
