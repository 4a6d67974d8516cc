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
        attack: its name.
        max_ssim: mean over encodings of the better of the two private images.
        mean_ssim: mean over encodings of the mean over both.
        min_l2: likewise, of the nearer one.
        mean_l2: likewise.
        cost: as its authors reported it.
        complexity: as they reported it; E encodings of d pixels.
    """

    attack: str
    max_ssim: float
    mean_ssim: float
    min_l2: float
    mean_l2: float
    cost: str
    complexity: str

    def to_json(self) -> dict[str, Any]:
        """Return it as it is written beside a score."""
        return asdict(self)


CARLINI_COST = "2 GPU hours + 2 CPU hours, after about 10 GPU hours of preparation"

LEADERBOARD = (
    Submission(*("Carlini v1", 0.90, 0.43, 0.01, 0.31), CARLINI_COST, "O(E^3)"),
    Submission(*("Carlini v2", 0.79, 0.37, 0.05, 0.42), CARLINI_COST, "O(E^3)"),
    Submission(
        *("PRNG attack", 0.98, 0.47, 0.00, 0.27),
        "120 CPU hours",
        "O(max(E, d)^3)",
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
