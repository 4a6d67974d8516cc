"""Encodings of a client without a federation, as an attack sees them, and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from instahide_fl.attacks.base import Recovered
from instahide_fl.config import Config, Scalar
from instahide_fl.data.datasets import augmentation_for, load_dataset
from instahide_fl.data.federated_data import load_pool
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.metrics.matching import match_one_to_one
from instahide_fl.metrics.registration import registered_ssim
from instahide_fl.metrics.similarity import pairwise_ssim, psnr, ssim
from instahide_fl.rng import stream
from instahide_fl.transcript.threat_model import Knowledge, threat_model
from instahide_fl.transcript.view import AdversaryView, KnownMapping, Observation
from instahide_fl.types import EncodedBatch, EncodingKey, PrivateSplit


@dataclass(frozen=True)
class Scored:
    """Means over the recovered images, in the better sign of all images together.

    Attributes:
        count: images recovered.
        ssim: mean.
        psnr: mean, dB.
        above_half: share of images with SSIM above 0.5.
        flipped: SSIM, plain or mirrored; None where nothing is augmented.
        registered: SSIM in the best position of up to four pixels; likewise.
    """

    count: int
    ssim: float
    psnr: float
    above_half: float
    flipped: float | None = None
    registered: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return rounded figures."""
        figures = {
            "ssim": self.ssim,
            "psnr": self.psnr,
            "above_half": self.above_half,
            "flipped": self.flipped,
            "registered": self.registered,
        }
        known = {name: one for name, one in figures.items() if one is not None}
        return {"count": self.count} | {name: round(known[name], 4) for name in known}


@dataclass(frozen=True)
class EncodedClient:
    """Every image of a client, encoded T times: one round for each time.

    Attributes:
        config: settings.
        split: the private images.
        pool: public ones, or None.
        rounds: encodings and their keys.
    """

    config: Config
    split: PrivateSplit
    pool: MixingPool | None
    rounds: tuple[tuple[EncodedBatch, EncodingKey], ...]

    def view(self, adversary: str) -> AdversaryView:
        """Return what an adversary who holds encodings has."""
        model = threat_model(adversary)
        return AdversaryView(
            model,
            self.config,
            self.split.statistics,
            tuple(self.split.images.shape[1:]),
            self.split.num_classes,
            tuple(
                Observation(
                    number + 1,
                    "0",
                    len(batch),
                    1.0,
                    "gradient",
                    encodings=batch.images,
                    soft_targets=batch.soft_targets,
                    mapping=KnownMapping(
                        key.private_index, key.coefficients, key.public_index
                    )
                    if Knowledge.MAPPING in model.knows
                    else None,
                )
                for number, (batch, key) in enumerate(self.rounds)
            ),
            (),
            self.pool,
        )

    def score(self, recovered: Recovered) -> Scored:
        """Hold what was recovered against the images, one to one."""
        if recovered.images is None:
            return Scored(0, 0.0, 0.0, 0.0)
        originals = self.split.images.float() / 255
        tried = [
            self._signed(sign * recovered.images, originals, recovered.rows)
            for sign in (1, -1)
        ]
        return max(tried, key=lambda one: one.ssim)

    def _signed(self, images: Tensor, originals: Tensor, rows: Tensor | None) -> Scored:
        shown = self.split.statistics.restore(images).clamp(0, 1)
        if rows is None:
            index, rows = match_one_to_one(pairwise_ssim(shown, originals))
            shown = shown[index]
        matched = originals[rows]
        similar = ssim(shown, matched)
        augmented = self.rounds[0][1].augmentation is not None
        return Scored(
            len(shown),
            float(similar.mean()),
            float(psnr(shown, matched).mean()),
            float((similar > 0.5).float().mean()),
            float(registered_ssim(shown, matched, 0).mean()) if augmented else None,
            float(registered_ssim(shown, matched).mean()) if augmented else None,
        )


def encode_client(
    settings: Mapping[str, Scalar], images: int, times: int
) -> EncodedClient:
    """Encode the first images of a data set.

    Args:
        settings: of a run; without `data.augment` nothing is augmented.
        images: n.
        times: T, how often each is encoded.
    """
    rows = {"data.train-rows": f"0:{images}", "data.augment": "none"}
    config = Config().with_values({**rows, **settings})
    split = load_dataset(config.data, config.seed).train
    shape = tuple(split.images.shape[1:])
    pool = load_pool(config, shape)
    encoder = build_encoder(
        config.instahide, pool, augmentation_for(config.data, shape)
    )
    rng = stream(config.seed, "encode")
    rounds = [encoder.encode(torch.arange(images), split, rng) for _ in range(times)]
    return EncodedClient(config, split, pool, tuple(rounds))
