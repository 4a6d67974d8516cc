"""The evaluation of the global model, and the last one that was found sound."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from flwr.serverapp import Grid
from torch import Tensor, nn

from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset
from instahide_fl.data.federated_data import load_pool
from instahide_fl.errors import DivergenceError, PoolError
from instahide_fl.evaluation.batches import (
    ENCODED,
    TEST,
    BatchEvaluator,
    EvaluatesBatches,
    batches_of,
    evaluated_images,
)
from instahide_fl.evaluation.chance import ChanceLevel
from instahide_fl.evaluation.clean import BATCH_SIZE, mean_figures
from instahide_fl.run_folder import MODEL, RunFolder
from instahide_fl.training.device import training_device


class GlobalEvaluation:
    """Evaluates global arrays on test images, and on validation images if there are.

    Args:
        evaluator: The process or the workers that evaluate.
        dataset: The server's data.
        config: The run's settings.
    """

    def __init__(
        self, evaluator: EvaluatesBatches, dataset: ImageDataset, config: Config
    ) -> None:
        self._evaluator, self._config = evaluator, config
        images = evaluated_images(dataset)
        self._sizes = {part: len(split) for part, split in images.items()}
        if config.evaluated_encodings:
            self._sizes[ENCODED] = len(dataset.test)
        self._last_round = 0
        self._last_arrays: dict[str, Tensor] = {}
        self.chance = ChanceLevel.of(dataset.test.targets)

    def measure(
        self, round_number: int, arrays: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Evaluate the global arrays after a round.

        Args:
            round_number: 1, 2, ...
            arrays: The global arrays by name.

        Returns:
            Accuracy in [0, 1] and mean cross-entropy in nats, as `test_accuracy`,
            `test_loss`, `validation_accuracy` and `validation_loss`; the accuracy on
            the average over encodings of test images as `test_accuracy_encoded`.

        Raises:
            DivergenceError: A loss on clean images is not finite.
        """
        figures = self._evaluate(round_number, arrays, self._sizes)
        self._last_round = round_number
        # Copies: the optimizer's next step moves the arrays.
        self._last_arrays = {name: array.clone() for name, array in arrays.items()}
        return figures

    def check_finite(self, round_number: int, arrays: Mapping[str, Tensor]) -> None:
        """Refuse arrays with a loss that is not finite, before a checkpoint holds them.

        A look at a single batch is enough, where a round is not evaluated anyway.

        Args:
            round_number: 1, 2, ...
            arrays: The global arrays by name.

        Raises:
            DivergenceError: The loss is not finite.
        """
        self._evaluate(round_number, arrays, {TEST: min(BATCH_SIZE, self._sizes[TEST])})

    def _evaluate(
        self, round_number: int, arrays: Mapping[str, Tensor], sizes: Mapping[str, int]
    ) -> dict[str, float]:
        """Evaluate arrays on the first images of parts, by number; see `measure`."""
        by_part = {part: batches_of(part, size) for part, size in sizes.items()}
        batches = [batch for part in by_part.values() for batch in part]
        evaluated = iter(
            self._evaluator.evaluate_batches(arrays, round_number, batches)
        )
        figures: dict[str, float] = {}
        for part, size in sizes.items():
            part_figures = itertools.islice(evaluated, len(by_part[part]))
            accuracy, loss = mean_figures(part_figures, size)
            if part == ENCODED:
                figures["test_accuracy_encoded"] = accuracy
                continue
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"round {round_number}: the loss of the global model on {part} "
                    f"images is not finite: lower {self._config.step_size}"
                )
            figures |= {f"{part}_accuracy": accuracy, f"{part}_loss": loss}
        return figures

    def chance_figures(
        self, round_number: int, figures: Mapping[str, float]
    ) -> dict[str, float]:
        """Return what a round's line says if the network is at chance when it is due.

        Args:
            round_number: 1, 2, ...
            figures: The result of `measure`; empty for a round without evaluation.

        Returns:
            `at_chance` and `chance_bound`, at the first evaluation after
            `train.chance-check` rounds; otherwise nothing.
        """
        train = self._config.train
        previous = round_number - train.evaluate_every
        is_due = previous < train.chance_check <= round_number < train.rounds
        if not (figures and train.chance_check and is_due):
            return {}
        if self.chance.is_beaten_by(figures["test_accuracy"]):
            return {}
        return {"at_chance": True, "chance_bound": self.chance.bound}

    def keep_model(self, folder: RunFolder) -> str:
        """Write the last model whose loss was finite, and say what there is.

        Args:
            folder: The folder of the run, which ends early.

        Raises:
            OutputError: The model cannot be written.
        """
        checkpoint = (
            "the checkpoint before it is kept"
            if folder.resumable
            else "there is no checkpoint yet (train.checkpoint-every)"
        )
        if not self._last_round:
            return checkpoint
        folder.save_model(self._last_arrays)
        return (
            f"{checkpoint}, and {MODEL} holds the model of round {self._last_round}, "
            f"the last one that was evaluated"
        )


def find_evaluator(
    grid: Grid,
    model: nn.Module,
    dataset: ImageDataset,
    config: Config,
    pool_sha256: str,
) -> EvaluatesBatches:
    """Return what evaluates a run: the grid's workers, or else this process.

    Args:
        grid: Flower's grid.
        model: A network of the run's shape; its arrays are overwritten.
        dataset: The server's data.
        config: The run's settings.
        pool_sha256: The digest of the pool that the clients mix with.

    Raises:
        PoolError: encodings are evaluated, and the server's pool is missing, damaged,
            or another one than the clients'.
        ConfigError: the settings ask for a GPU and there is none.
    """
    if isinstance(grid, EvaluatesBatches):
        return grid
    pool = None
    if config.evaluated_encodings:
        pool = load_pool(config, dataset.image_shape)
    if pool is not None and pool.sha256 != pool_sha256:
        raise PoolError(
            f"train.evaluate-encodings: the server's pool has sha256 "
            f"{pool.sha256[:12]}, that of the clients has {pool_sha256[:12]}: copy "
            f"theirs to the server and set pool.source"
        )
    device = training_device(config.resources)
    return BatchEvaluator(model.to(device), dataset, config, pool)
