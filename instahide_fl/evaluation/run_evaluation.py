"""The evaluation of a finished run: on clean test images and on encodings of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from instahide_fl.config import ResourcesConfig
from instahide_fl.encoding.encoder import MixingEncoder
from instahide_fl.evaluation.clean import evaluate
from instahide_fl.evaluation.encoded import (
    EncodedEvaluation,
    evaluate_encodings,
    inference_config,
    inference_encoder,
)
from instahide_fl.evaluation.finished_run import FinishedRun
from instahide_fl.pictures.evaluation import save_evaluation_picture
from instahide_fl.rng import stream
from instahide_fl.run_folder import EVALUATION, EVALUATION_PICTURE
from instahide_fl.training.device import training_device


@dataclass(frozen=True, slots=True)
class CleanEvaluation:
    """Accuracy in [0, 1] and mean cross-entropy in nats on clean test images."""

    accuracy: float
    loss: float


@dataclass(frozen=True, slots=True)
class EncodedSettings:
    """The settings by which encodings of test images are made and averaged.

    Attributes:
        encodings: The number of encodings of each image.
        average: What is averaged, `softmax` or `logits`.
        seed: The seed of the keys.
    """

    encodings: int
    average: str
    seed: int


def evaluate_clean(run: FinishedRun) -> CleanEvaluation:
    """Classify the clean test images, as the run's last round did."""
    return CleanEvaluation(*evaluate(run.model, run.dataset.test))


def encoder_for_run(run: FinishedRun, own_coefficient: float | None) -> MixingEncoder:
    """Return the encoder that test images of a run are encoded with.

    Args:
        run: The run whose encoding, k, c1, coefficient law and pool are used.
        own_coefficient: The smallest coefficient of the image itself; None takes the
            run's.

    Raises:
        ConfigError: the run has no encodings, or the bound is out of reach.
        PoolError: the run's pool is missing, damaged, or another one by now.
    """
    config = inference_config(run.config.instahide, own_coefficient)
    return inference_encoder(config, run.partner_pool())


def evaluate_encoded(
    run: FinishedRun,
    encoder: MixingEncoder,
    settings: EncodedSettings,
    advance: Callable[[int, int], object] | None = None,
) -> EncodedEvaluation:
    """Classify encodings of the test images, and average the predictions.

    Args:
        run: The run with the model and the test images.
        encoder: The encoder from `encoder_for_run`.
        settings: The number of encodings, and how they are averaged.
        advance: A function to call after each batch, with the encodings classified so
            far and their number in all.

    Raises:
        ConfigError: the settings are not valid.
        PoolError: the pool does not fit the test images.
    """
    return evaluate_encodings(
        _on_device(run.model, run.config.resources),
        run.dataset.test,
        encoder=encoder,
        encodings=settings.encodings,
        rng=stream(settings.seed, "inference"),
        average=settings.average,
        advance=advance,
    )


def save_evaluation(
    run: FinishedRun,
    clean: CleanEvaluation,
    encoder: MixingEncoder,
    settings: EncodedSettings,
    encoded: EncodedEvaluation,
) -> None:
    """Write evaluation.json and evaluation.png, over those of an earlier evaluation.

    Args:
        run: The run that was evaluated; the files go into its folder.
        clean: The result on clean images.
        encoder: The encoder that made the encodings.
        settings: The settings of the evaluation.
        encoded: The result on encodings.

    Raises:
        OutputError: a file cannot be written.
    """
    encoded_json = {
        "encodings": settings.encodings,
        "own_coefficient": encoder.config.min_private_weight,
        "average": settings.average,
        "seed": settings.seed,
        **asdict(encoded),
        "accuracy": encoded.accuracy,
    }
    evaluation = {"clean": asdict(clean), "encoded": encoded_json}
    run.folder.write_json(EVALUATION, evaluation)
    path = run.folder.path / EVALUATION_PICTURE
    save_evaluation_picture(path, encoded.accuracy_by_encodings, clean.accuracy)


def _on_device(model: nn.Module, config: ResourcesConfig) -> nn.Module:
    """Move the model to a GPU if the run had one and this machine has one too."""
    if config.gpus_per_client and torch.cuda.is_available():
        return model.to(training_device(config))
    return model
