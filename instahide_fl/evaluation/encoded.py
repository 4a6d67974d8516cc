"""The evaluation on encodings of test images instead of the images themselves.

Training saw only encodings, so a clean image is not what the network knows. The
authors of InstaHide classify several encodings of an image, each under a fresh key, and
average the predictions: "setting K to 10~20 can give reasonable accuracy". Their
published code does not do it; what they left open is an argument here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instahide_fl.config import EncoderConfig
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import MixingEncoder, build_encoder
from instahide_fl.errors import ConfigError
from instahide_fl.evaluation.clean import BatchFigures
from instahide_fl.types import PrivateSplit

AVERAGES = ("softmax", "logits")


@dataclass(frozen=True, slots=True)
class EncodedEvaluation:
    """How well encodings of test images are classified.

    Attributes:
        accuracy_by_encodings: One accuracy in [0, 1] for each number of encodings; the
            t-th averages the predictions of the first t encodings of every image.
        loss: The mean cross-entropy, in nats, of the average over all encodings.
    """

    accuracy_by_encodings: tuple[float, ...]
    loss: float

    @property
    def accuracy(self) -> float:
        """The accuracy in [0, 1] with all encodings."""
        return self.accuracy_by_encodings[-1]


def inference_config(
    config: EncoderConfig, own_coefficient: float | None = None
) -> EncoderConfig:
    """Return the settings to encode a single image that has no private partner.

    k, c1, the law of the coefficients and the method stay; all k-1 partners come from a
    pool.

    Args:
        config: The settings that the run was trained with.
        own_coefficient: The smallest coefficient of the image itself; None takes the
            run's c2 if its encodings used a pool (there it bounds the private images'
            sum) and no bound otherwise.

    Raises:
        ConfigError: the run did not encode, or the bound is out of reach.
    """
    if config.method == "none":
        raise ConfigError(
            'the run has instahide.method = "none", so there are no encodings to '
            "average: leave --encodings out, or evaluate a run of another method"
        )
    if own_coefficient is None:
        own_coefficient = config.min_private_weight if config.uses_pool else 0.0
    limit = config.max_coefficient if config.num_mixed > 1 else 1.0
    if not 0 <= own_coefficient < limit:
        raise ConfigError(
            f"the image's own coefficient must have a bound in [0, {limit:g}), below "
            f"the run's instahide.max-coefficient, got {own_coefficient:g}: give such "
            f"an --own-coefficient"
        )
    changes = {
        "scope": "cross",
        "num_private": 1,
        "min_private_weight": own_coefficient,
        "refresh": "epoch",
    }
    return EncoderConfig(**{**config.model_dump(), **changes})


def inference_encoder(config: EncoderConfig, pool: MixingPool) -> MixingEncoder:
    """Build the encoder for test images; it does not augment them.

    Args:
        config: The settings from `inference_config`.
        pool: The pool that partners come from: the run's, or `training_pool`.

    Raises:
        ConfigError: hardly any random coefficients meet the bounds: drawing would
            hardly ever end.
    """
    try:
        return build_encoder(config, pool)
    except ConfigError as error:
        raise ConfigError(
            f"an own coefficient of at least {config.min_private_weight:g} is all but "
            f"impossible: lower --own-coefficient ({error})"
        ) from None


def training_pool(train: PrivateSplit) -> MixingPool:
    """Make a pool of the training images, for runs that mixed private images only.

    Args:
        train: All training images; the pool has their normalisation constants.
    """
    images = train.images if train.rows is None else train.images[train.rows]
    pool = MixingPool.from_images(images.cpu(), "training images")
    return replace(pool, statistics=train.statistics)


@torch.no_grad()
def evaluate_encodings(
    model: nn.Module,
    images: PrivateSplit,
    encoder: MixingEncoder,
    encodings: int,
    rng: np.random.Generator,
    *,
    average: str = "softmax",
    batch_size: int = 128,
    advance: Callable[[int, int], object] | None = None,
) -> EncodedEvaluation:
    """Classify the average prediction over several encodings of each image.

    Keys are drawn encoding by encoding, so more encodings begin with the same ones. Of
    all images only the sum of predictions, f64[N,K], is kept.

    Args:
        model: A network from f32[B,C,H,W] to logits f32[B,K].
        images: The N test images, normalised with their own statistics.
        encoder: The encoder from `inference_encoder`.
        encodings: The number of encodings of each image, at least 1.
        rng: The generator that draws the keys.
        average: What is averaged: probabilities (`softmax`) or `logits`.
        batch_size: The number of images at a time; another number draws other keys.
        advance: A function to call after each batch, with the encodings classified so
            far and their number in all.

    Raises:
        ConfigError: the average has no such name, or there are no encodings.
        PoolError: the encoder's pool does not fit the images.
    """
    if average not in AVERAGES:
        raise ConfigError(f"--average must be softmax or logits, got {average!r}")
    if encodings < 1:
        raise ConfigError(f"--encodings must be at least 1, got {encodings}")
    model.eval()
    targets = images.targets[images.image_rows(torch.arange(len(images)))].cpu()
    total = torch.zeros(len(images), images.num_classes, dtype=torch.float64)
    accuracies = []
    classified = 0
    for _ in range(encodings):
        for rows in torch.split(torch.arange(len(images)), batch_size):
            batch, _key = encoder.encode(rows, images, rng)
            total[rows] += _prediction(model, batch.images, average)
            classified += len(rows)
            if advance is not None:
                advance(classified, encodings * len(images))
        correct = (total.argmax(dim=1) == targets).sum()
        accuracies.append(int(correct) / len(images))
    mean = total / encodings
    if average == "softmax":
        mean = _log_probabilities(mean)
    return EncodedEvaluation(tuple(accuracies), F.cross_entropy(mean, targets).item())


@torch.no_grad()
def evaluate_encoded_batch(
    model: nn.Module,
    images: PrivateSplit,
    rows: Tensor,
    encoder: MixingEncoder,
    encodings: int,
    rng: np.random.Generator,
) -> BatchFigures:
    """Classify a batch of images by the mean probabilities over encodings of each.

    Args:
        model: A network from f32[B,C,H,W] to logits f32[B,K].
        images: The test images, normalised with their own statistics.
        rows: The batch's images, i64[B].
        encoder: The encoder from `inference_encoder`.
        encodings: The number of encodings of each image, at least 1.
        rng: The generator that draws the keys.

    Raises:
        PoolError: the encoder's pool does not fit the images.
    """
    model.eval()
    targets = images.targets[images.image_rows(rows)].cpu()
    total = torch.zeros(len(rows), images.num_classes, dtype=torch.float64)
    for _ in range(encodings):
        batch, _key = encoder.encode(rows, images, rng)
        total += _prediction(model, batch.images, "softmax")
    correct = int((total.argmax(dim=1) == targets).sum())
    logs = _log_probabilities(total / encodings)
    return BatchFigures(correct, F.nll_loss(logs, targets, reduction="sum").item())


def _log_probabilities(mean: Tensor) -> Tensor:
    """Return logarithms; a probability that rounds to 0 has a finite one too."""
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


def _prediction(model: nn.Module, inputs: Tensor, average: str) -> Tensor:
    """Return the prediction that is averaged, f64[B,K], on the CPU."""
    device = next(model.parameters()).device
    logits: Tensor = model(inputs.to(device)).cpu().double()
    return logits.softmax(dim=1) if average == "softmax" else logits
