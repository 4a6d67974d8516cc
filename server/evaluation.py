"""The evaluation of the global model, and the last one that was found sound."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset
from instahide_fl.errors import DivergenceError
from instahide_fl.evaluation.chance import ChanceLevel
from instahide_fl.evaluation.clean import evaluate
from instahide_fl.models.arrays import get_arrays, load_arrays
from instahide_fl.run_folder import MODEL, RunFolder
from instahide_fl.types import PrivateSplit

FEW_IMAGES = 128  # that tell whether a loss is finite


class GlobalEvaluation:
    """Evaluates global arrays on test images, and on validation images if there are.

    Args:
        model: A network of the run's shape; its arrays are overwritten.
        dataset: The server's data.
        config: The run's settings.
    """

    def __init__(self, model: nn.Module, dataset: ImageDataset, config: Config) -> None:
        self._model, self._config = model, config
        self._images = {"test": dataset.test}
        if dataset.validation is not None:
            self._images["validation"] = dataset.validation
        self._last_round = 0
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
            `test_loss`, `validation_accuracy` and `validation_loss`.

        Raises:
            DivergenceError: A loss is not finite; the arrays before are loaded again.
        """
        figures = self._evaluate(round_number, arrays, self._images)
        self._last_round = round_number
        return figures

    def check_finite(self, round_number: int, arrays: Mapping[str, Tensor]) -> None:
        """Refuse arrays with a loss that is not finite, before a checkpoint holds them.

        A look at a few images is enough, where a round is not evaluated anyway.

        Args:
            round_number: 1, 2, ...
            arrays: The global arrays by name.

        Raises:
            DivergenceError: The loss is not finite.
        """
        before, test = get_arrays(self._model), self._images["test"]
        few_images = test.subset(torch.arange(min(FEW_IMAGES, len(test))))
        self._evaluate(round_number, arrays, {"test": few_images})
        load_arrays(self._model, before)

    def _evaluate(
        self,
        round_number: int,
        arrays: Mapping[str, Tensor],
        images: Mapping[str, PrivateSplit],
    ) -> dict[str, float]:
        """Load arrays and evaluate them on images by name; see `measure`."""
        before = get_arrays(self._model)
        load_arrays(self._model, arrays)
        figures: dict[str, float] = {}
        for name, split in images.items():
            accuracy, loss = evaluate(self._model, split)
            if not math.isfinite(loss):
                load_arrays(self._model, before)
                raise DivergenceError(
                    f"round {round_number}: the loss of the global model on {name} "
                    f"images is not finite: lower {self._config.step_size}"
                )
            figures |= {f"{name}_accuracy": accuracy, f"{name}_loss": loss}
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
        folder.save_model(get_arrays(self._model))
        return (
            f"{checkpoint}, and {MODEL} holds the model of round {self._last_round}, "
            f"the last one that was evaluated"
        )
