"""Encode a client's images without a federation, and score attacks on the encodings."""

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
    """Means over the recovered images, in the better of two signs for all of them.

    Attributes:
        count: The number of recovered images.
        ssim: The mean SSIM.
        psnr: The mean PSNR, in dB.
        above_half: The share of images with SSIM above 0.5.
        flipped: The mean of the better SSIM of each image, plain or mirrored; None
            without augmentation.
        registered: The mean SSIM in the best position, shifted by up to four pixels;
            None without augmentation.
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
        rounded = {
            name: round(figure, 4)
            for name, figure in figures.items()
            if figure is not None
        }
        return {"count": self.count, **rounded}


@dataclass(frozen=True)
class EncodedClient:
    """The images of a client, each encoded T times: once in each of T rounds.

    Attributes:
        config: The settings.
        split: The private images.
        pool: The public images; None if none are mixed.
        rounds: The encodings of each round and their keys.
    """

    config: Config
    split: PrivateSplit
    pool: MixingPool | None
    rounds: tuple[tuple[EncodedBatch, EncodingKey], ...]

    def view(self, adversary: str) -> AdversaryView:
        """Return the view of an adversary who holds encodings.

        Args:
            adversary: The name of the threat model.
        """
        model = threat_model(adversary)
        with_mapping = Knowledge.MAPPING in model.knows
        return AdversaryView(
            threat_model=model,
            config=self.config,
            statistics=self.split.statistics,
            image_shape=tuple(self.split.images.shape[1:]),
            num_classes=self.split.num_classes,
            observations=tuple(
                Observation(
                    round=number,
                    client="0",
                    num_examples=len(batch),
                    learning_rate_factor=1.0,
                    kind="gradient",
                    encodings=batch.images,
                    soft_targets=batch.soft_targets,
                    mapping=_mapping(key) if with_mapping else None,
                )
                for number, (batch, key) in enumerate(self.rounds, start=1)
            ),
            rounds=(),
            pool=self.pool,
        )

    def score(self, recovered: Recovered) -> Scored:
        """Compare recovered images with the private ones, one to one."""
        if recovered.images is None:
            return Scored(0, 0.0, 0.0, 0.0)
        originals = self.split.images.float() / 255
        in_both_signs = [
            self._score_images(sign * recovered.images, originals, recovered.rows)
            for sign in (1, -1)
        ]
        return max(in_both_signs, key=lambda scored: scored.ssim)

    def _score_images(
        self, images: Tensor, originals: Tensor, rows: Tensor | None
    ) -> Scored:
        shown = self.split.statistics.restore(images).clamp(0, 1)
        if rows is None:
            index, rows = match_one_to_one(pairwise_ssim(shown, originals))
            shown = shown[index]
        matched = originals[rows]
        similar = ssim(shown, matched)
        augmented = self.rounds[0][1].augmentation is not None
        flipped = registered = None
        if augmented:
            flipped = float(registered_ssim(shown, matched, 0).mean())
            registered = float(registered_ssim(shown, matched).mean())
        return Scored(
            count=len(shown),
            ssim=float(similar.mean()),
            psnr=float(psnr(shown, matched).mean()),
            above_half=float((similar > 0.5).float().mean()),
            flipped=flipped,
            registered=registered,
        )


def _mapping(key: EncodingKey) -> KnownMapping:
    return KnownMapping(key.private_index, key.coefficients, key.public_index)


def encode_client(
    settings: Mapping[str, Scalar], images: int, times: int
) -> EncodedClient:
    """Encode the first images of a data set.

    Args:
        settings: The settings of a run; without `data.augment` nothing is augmented.
        images: n, the number of images.
        times: T, the number of encodings of each image.
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
