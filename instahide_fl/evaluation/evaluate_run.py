"""Evaluating a finished run again: on clean test images and on encodings of them."""

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
    """How encodings of test images are made and averaged.

    Attributes:
        encodings: of each image.
        average: `softmax` or `logits`.
        seed: of the keys.
    """

    encodings: int
    average: str
    seed: int


def evaluate_clean(run: FinishedRun) -> CleanEvaluation:
    """Classify the clean test images, as the run's last round did."""
    return CleanEvaluation(*evaluate(run.model, run.dataset.test))


def encoder_of(run: FinishedRun, own_coefficient: float | None) -> MixingEncoder:
    """Return the encoder that test images of a run are encoded with.

    Args:
        run: whose method, k, c1, law and pool are taken.
        own_coefficient: least coefficient of the image itself; None takes the run's.

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
    advance: Callable[[int], object] | None = None,
) -> EncodedEvaluation:
    """Classify encodings of the test images, and average.

    Args:
        run: with the model and the test images.
        encoder: from `encoder_of`.
        settings: how many encodings, and how they are averaged.
        advance: told after each batch how many encodings it had.

    Raises:
        ConfigError: the settings are not valid.
        PoolError: the pool does not fit the test images.
    """
    return evaluate_encodings(
        _on_device(run.model, run.config.resources),
        run.dataset.test,
        encoder,
        settings.encodings,
        stream(settings.seed, "inference"),
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

    Raises:
        OutputError: they cannot be written.
    """
    made = {
        "encodings": settings.encodings,
        "own_coefficient": encoder.config.min_private_weight,
        "average": settings.average,
        "seed": settings.seed,
    }
    result = {**made, **asdict(encoded), "accuracy": encoded.accuracy}
    run.folder.write_json(EVALUATION, {"clean": asdict(clean), "encoded": result})
    path = run.folder.path / EVALUATION_PICTURE
    save_evaluation_picture(path, encoded.accuracy_by_encodings, clean.accuracy)


def _on_device(model: nn.Module, config: ResourcesConfig) -> nn.Module:
    """Move the model to a GPU if the run had one and this machine has one too."""
    if config.gpus_per_client and torch.cuda.is_available():
        return model.to(training_device(config))
    return model
