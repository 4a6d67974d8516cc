"""Classifying encodings of a test image instead of the image itself.

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
from instahide_fl.types import PrivateSplit

AVERAGES = ("softmax", "logits")


@dataclass(frozen=True, slots=True)
class EncodedEvaluation:
    """How well encodings of test images are classified.

    Attributes:
        accuracy_by_encodings: K accuracies in [0, 1]; the t-th averages the first t
            encodings of every image.
        loss: mean cross-entropy in nats of the average over all K.
    """

    accuracy_by_encodings: tuple[float, ...]
    loss: float

    @property
    def accuracy(self) -> float:
        """In [0, 1], with all K encodings."""
        return self.accuracy_by_encodings[-1]


def inference_config(
    config: EncoderConfig, own_coefficient: float | None = None
) -> EncoderConfig:
    """Return how a single image is encoded that has no private partner.

    k, c1, the law and the method stay; all k-1 partners come from a pool.

    Args:
        config: what the run was trained with.
        own_coefficient: least coefficient of the image itself; None takes the run's c2
            if its encodings used a pool (there it bounds the private images' sum) and
            no bound otherwise.

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
    most = config.max_coefficient if config.num_mixed > 1 else 1.0
    if not 0 <= own_coefficient < most:
        raise ConfigError(
            f"the image's own coefficient must have a bound in [0, {most:g}), below "
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
        config: from `inference_config`.
        pool: where partners come from: the run's pool, or `training_pool`.

    Raises:
        ConfigError: so few random coefficients meet the bounds that drawing would
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
        train: all training images; their constants for normalising are kept.
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
    advance: Callable[[int], object] | None = None,
) -> EncodedEvaluation:
    """Classify the average prediction over several encodings of each image.

    Keys are drawn encoding by encoding, so more encodings begin with the same ones. Of
    all images only the sum of predictions, f64[N,K], is kept.

    Args:
        model: from f32[B,C,H,W] to logits f32[B,K].
        images: the test images; normalised with their own statistics.
        encoder: from `inference_encoder`.
        encodings: of each image, at least 1.
        rng: draws the keys.
        average: `softmax` averages probabilities, `logits` what they are made of.
        batch_size: images at a time; another one draws other keys.
        advance: told after each batch how many encodings it had.

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
    for _ in range(encodings):
        for rows in torch.split(torch.arange(len(images)), batch_size):
            batch, _key = encoder.encode(rows, images, rng)
            total[rows] += _prediction(model, batch.images, average)
            if advance is not None:
                advance(len(rows))
        right = (total.argmax(dim=1) == targets).sum()
        accuracies.append(int(right) / len(images))
    mean = total / encodings
    if average == "softmax":
        # A probability may round to 0, whose loss would be infinite.
        mean = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    return EncodedEvaluation(tuple(accuracies), F.cross_entropy(mean, targets).item())


def _prediction(model: nn.Module, inputs: Tensor, average: str) -> Tensor:
    """Return what is averaged, f64[B,K], on the CPU."""
    device = next(model.parameters()).device
    logits: Tensor = model(inputs.to(device)).cpu().double()
    return logits.softmax(dim=1) if average == "softmax" else logits
