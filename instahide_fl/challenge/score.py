"""The metrics of the challenge's rules, for a decryption and for its baselines.

For each encoding the decryption is compared with every private image in it: SSIM as
scikit-image computes it, and the squared difference. The rules take the best and the
mean over these images, and the mean of both over all encodings.

Source: README of github.com/Hazelsuko07/InstaHide_Challenge, "Submitting Your Attack".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instahide_fl.audit.scoring.originals import uninformed_guess
from instahide_fl.challenge.files import DECRYPTION
from instahide_fl.challenge.leaderboard import HOW_TO_READ, LEADERBOARD
from instahide_fl.errors import DataError
from instahide_fl.files import write_text
from instahide_fl.metrics.correction import negative
from instahide_fl.metrics.scores import RECOGNISABLE
from instahide_fl.metrics.similarity import mse, ssim
from instahide_fl.transcript.truth import ClientTruth
from instahide_fl.types import ChannelStatistics

SCORE = "score.json"
CHUNK = 500  # encodings compared at a time
L2_SCALE = 4.0  # of squared differences, from [0, 1] to [-1, 1]


@dataclass(frozen=True)
class ChallengeMetrics:
    """The four metrics of the rules, and two that the mean hides.

    Attributes:
        max_ssim: The best SSIM with the private images of an encoding, mean over
            encodings.
        mean_ssim: The mean SSIM with the private images of an encoding, mean over
            encodings.
        min_l2: The least mean squared difference to the private images of an encoding,
            pixels in [-1, 1], mean over encodings.
        mean_l2: The mean of these differences, mean over encodings.
        best_ssim: The best SSIM of all encodings, the worst case for the victims.
        share_above_half: The share of encodings whose best SSIM is above 0.5.
    """

    max_ssim: float
    mean_ssim: float
    min_l2: float
    mean_l2: float
    best_ssim: float
    share_above_half: float

    def to_json(self) -> dict[str, float]:
        """Return the score as JSON values, as in score.json."""
        return {
            "max_ssim": self.max_ssim,
            "mean_ssim": self.mean_ssim,
            "min_l2": self.min_l2,
            "mean_l2": self.mean_l2,
            "best_ssim": self.best_ssim,
            "share_above_0.5": self.share_above_half,
        }


@dataclass(frozen=True)
class ChallengeScore:
    """A decryption's metrics, and those of its baselines on the same challenge.

    Attributes:
        submitted: The metrics of the decryption.
        negative: The metrics of its negative: one sign stays open in most attacks.
        mean_image: The metrics of the mean of the images that are not in the encoding:
            what is reached without any information on it.
        perfect: The metrics of the private image that weighs most: the ceiling.
        encodings: E.
        private_images: p, the number of private images in each encoding.
    """

    submitted: ChallengeMetrics
    negative: ChallengeMetrics
    mean_image: ChallengeMetrics
    perfect: ChallengeMetrics
    encodings: int
    private_images: int

    def rows(self) -> dict[str, ChallengeMetrics]:
        """Return the metrics by name, to print."""
        return {
            "this decryption": self.submitted,
            "its negative": self.negative,
            "mean image": self.mean_image,
            "perfect": self.perfect,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the figures of score.json."""
        return {
            "metrics": self.submitted.to_json(),
            "negative": self.negative.to_json(),
            "baseline": {"mean_image": self.mean_image.to_json()},
            "ceiling": self.perfect.to_json(),
            "encodings": self.encodings,
            "private_images_per_encoding": self.private_images,
            "leaderboard": [submission.to_json() for submission in LEADERBOARD],
            "how_to_read": HOW_TO_READ,
        }


def score_challenge(
    decryption: Tensor, truth: ClientTruth, statistics: ChannelStatistics
) -> ChallengeScore:
    """Score a decryption.

    Args:
        decryption: f32[E,C,H,W] in [0, 1].
        truth: Originals and keys of the E encodings.
        statistics: Constants that private images are normalised with.
    """
    originals = truth.images.float() / 255
    components = truth.components
    strongest = truth.key.coefficients[:, : components.shape[1]].argmax(dim=1)
    perfect = originals[components[torch.arange(len(components)), strongest]]
    opposite = negative(decryption, statistics).clamp(0, 1)
    guess = uninformed_guess(originals, components, statistics).clamp(0, 1)
    return ChallengeScore(
        submitted=measure(decryption, originals, components),
        negative=measure(opposite, originals, components),
        mean_image=measure(guess, originals, components),
        perfect=measure(perfect, originals, components),
        encodings=len(components),
        private_images=components.shape[1],
    )


def measure(
    decryption: Tensor, originals: Tensor, components: Tensor
) -> ChallengeMetrics:
    """Return the metrics of the rules.

    Args:
        decryption: f32[E,C,H,W] in [0, 1].
        originals: f32[n,C,H,W] in [0, 1].
        components: i64[E,p], the private images of each encoding.
    """
    similar, distant = [], []
    parts = zip(
        torch.split(decryption, CHUNK), torch.split(components, CHUNK), strict=True
    )
    for images, index in parts:
        private = originals[index]  # [E,p,C,H,W]
        similar.append(ssim(images[:, None], private))
        distant.append(L2_SCALE * mse(images[:, None], private))
    ssims, distances = torch.cat(similar), torch.cat(distant)
    best = ssims.amax(dim=1)
    return ChallengeMetrics(
        max_ssim=float(best.mean()),
        mean_ssim=float(ssims.mean()),
        min_l2=float(distances.amin(dim=1).mean()),
        mean_l2=float(distances.mean()),
        best_ssim=float(best.max()),
        share_above_half=float((best > RECOGNISABLE).double().mean()),
    )


def describe_decryption(path: Path, attack: str, threat_model: str) -> None:
    """Write beside a decryption what made it.

    Args:
        path: The decryption's file.
        attack: The attack's name.
        threat_model: The adversary's name.

    Raises:
        OutputError: it cannot be written.
    """
    metadata = {
        "attack": attack,
        "threat_model": threat_model,
        "sha256": _sha256(path),
    }
    write_text(path.with_suffix(".json"), json.dumps(metadata, indent=2) + "\n")


def made_by(path: Path) -> dict[str, str]:
    """Return what made a decryption, as far as that was written down.

    Args:
        path: The decryption's file.

    Returns:
        The names "attack" and "threat_model"; empty for a file from elsewhere, or one
        that was changed since.
    """
    try:
        metadata = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if metadata["sha256"] != _sha256(path):
            return {}
        return {name: str(metadata[name]) for name in ("attack", "threat_model")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def save_score(path: Path, score: ChallengeScore, decryption: Path) -> None:
    """Write score.json.

    Args:
        path: The file to write.
        score: The score.
        decryption: The file of the decryption that was scored.

    Raises:
        OutputError: it cannot be written.
    """
    origin = {"decryption": {"file": decryption.name, **made_by(decryption)}}
    text = json.dumps({**origin, **score.to_json()}, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def default_decryption(folder: Path) -> Path:
    """Return the decryption in a challenge's folder.

    Raises:
        DataError: there is none.
    """
    path = folder / DECRYPTION
    if not path.is_file():
        raise DataError(
            f"{path} is missing: run challenge attack {folder}, or name a file with "
            f"--decryption"
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
