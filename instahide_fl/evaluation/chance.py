"""Tells a network that has learned something from one at chance.

A network that has learned nothing names one class for all images. On the test images
that are at hand it gets the share of the largest class right, give or take chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from instahide_fl.config import Config
from instahide_fl.models.registry import WITHOUT_NORMALIZATION

CONFIDENCE = 0.99


@dataclass(frozen=True, slots=True)
class ChanceLevel:
    """The accuracy that a network without knowledge may reach.

    Attributes:
        majority_share: The share of the largest class among the test images.
        bound: The upper end of the Clopper-Pearson interval around it, with
            `CONFIDENCE`.
    """

    majority_share: float
    bound: float

    @classmethod
    def of(cls, targets: Tensor) -> Self:
        """Return the chance level of test images.

        Args:
            targets: i64[N], their classes.
        """
        # Imported here: it takes a second, and only evaluations need it.
        from scipy.stats import binomtest

        largest, count = int(targets.bincount().max()), len(targets)
        interval = binomtest(largest, count).proportion_ci(CONFIDENCE, method="exact")
        return cls(largest / count, float(interval.high))

    def is_beaten_by(self, accuracy: float) -> bool:
        """Tell whether an accuracy in [0, 1] shows that something was learned."""
        return accuracy > self.bound


def chance_warning(accuracy: float, bound: float, config: Config) -> str:
    """Say that a network has learned nothing, and what to try.

    Args:
        accuracy: The accuracy on clean test images, in [0, 1].
        bound: The bound that it was held against (`ChanceLevel.bound`).
        config: The run's settings.
    """
    if bound >= 1:
        return (
            "warning: all test images are of one class: accuracy on them cannot show "
            "whether the network has learned anything"
        )
    remedies = [f"another {config.step_size}", "more rounds (train.rounds)"]
    if config.instahide.method == "instahide" and not config.sign_invariant:
        remedies.insert(0, "model.sign-invariant = true")
    network = config.model
    if network.normalization == "none" and network.name not in WITHOUT_NORMALIZATION:
        remedies.append('model.normalization = "group"')
    return (
        f"warning: not trained: accuracy {accuracy:.1%} is not above {bound:.1%}, "
        f"which a network that has learned nothing may reach: try "
        f"{', '.join(remedies)}"
    )
