"""The published figures of the InstaHide Challenge, and how to read them.

Source: README of github.com/Hazelsuko07/InstaHide_Challenge. Means over its 5,000
encodings; the original images were never published, so nobody else can repeat them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Submission:
    """A row of the leaderboard.

    Attributes:
        attack: The attack's name.
        max_ssim: The SSIM with the better of the two private images, mean over
            encodings.
        mean_ssim: The mean SSIM with both private images, mean over encodings.
        min_l2: The L2 difference to the nearer private image, mean over encodings.
        mean_l2: The mean L2 difference to both private images, mean over encodings.
        cost: The cost that its authors reported.
        complexity: The complexity that its authors reported, for E encodings of d
            pixels.
    """

    attack: str
    max_ssim: float
    mean_ssim: float
    min_l2: float
    mean_l2: float
    cost: str
    complexity: str

    def to_json(self) -> dict[str, Any]:
        """Return the submission as JSON values, as written beside a score."""
        return asdict(self)


CARLINI_COST = "2 GPU hours + 2 CPU hours, after about 10 GPU hours of preparation"

LEADERBOARD = (
    Submission(
        attack="Carlini v1",
        max_ssim=0.90,
        mean_ssim=0.43,
        min_l2=0.01,
        mean_l2=0.31,
        cost=CARLINI_COST,
        complexity="O(E^3)",
    ),
    Submission(
        attack="Carlini v2",
        max_ssim=0.79,
        mean_ssim=0.37,
        min_l2=0.05,
        mean_l2=0.42,
        cost=CARLINI_COST,
        complexity="O(E^3)",
    ),
    Submission(
        attack="PRNG attack",
        max_ssim=0.98,
        mean_ssim=0.47,
        min_l2=0.00,
        mean_l2=0.27,
        cost="120 CPU hours",
        complexity="O(max(E, d)^3)",
    ),
)

HOW_TO_READ = (
    "Max_SSIM is the mean quality of the decrypted images, not a best case: an "
    "encoding hides several private images, one decryption is submitted for it, and "
    "it is held against the nearest of them. Mean_SSIM averages over all of them, so "
    "with two it cannot pass about 0.5 even for perfect decryptions (row 'perfect'). "
    "The rules do not define L2: here it is the mean squared difference of pixels in "
    "[-1, 1], which fits the leaderboard's figures. The leaderboard is about another "
    "set of images, and an attack that was given the key (an auditor's) is not "
    "comparable with it."
)
