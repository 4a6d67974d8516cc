"""What an attack made of a public defence, for its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instahide_fl.attacks.matching.simulated_defense import SimulatedDefense
from instahide_fl.attacks.matching.variation_weight import VariationWeight
from instahide_fl.attacks.matching.victims import Victims
from instahide_fl.config import DefenseConfig


@dataclass(frozen=True)
class Adaptation:
    """How an attack by gradient matching met the run's defence.

    Attributes:
        adaptive: Whether the attack made use of the defence's settings.
        defense: The run's defence.
        repeated: The transforms that the updates of guesses passed.
        compared_share: The share of the entries that was compared.
        variation: The weight of the total variation; None if the attack has none.
        local_steps: How several local steps were matched; empty if there was one.
    """

    adaptive: bool
    defense: DefenseConfig
    repeated: tuple[str, ...]
    compared_share: float
    variation: VariationWeight | None = None
    local_steps: str = ""

    @classmethod
    def of(
        cls,
        adaptive: bool,
        defense: DefenseConfig,
        victims: Sequence[Victims],
        variation: VariationWeight | None = None,
    ) -> Adaptation:
        """Return how stacks of victims were attacked."""
        simulated, steps = victims[0].defense, _steps_in_words(victims[0])
        if not adaptive or simulated is None:
            return cls(adaptive, defense, (), 1.0, variation, steps)
        shares = [_compared_share(stack, simulated) for stack in victims]
        share = sum(shares) / len(shares)
        return cls(adaptive, defense, simulated.transforms, share, variation, steps)

    @property
    def form(self) -> str:
        """The form of the attack in one line."""
        if self.defense.description == "none":
            return "no defence to adapt to"
        if not self.adaptive:
            return "unaware of the defence"
        on_public = self.variation and self.variation.origin == "public images"
        parts = {
            f"compares {self.compared_share:.2g} of the entries": "prune"
            in self.repeated,
            "compares signs": "sign" in self.repeated,
            "total variation chosen on public images": on_public,
        }
        used = ", ".join(text for text, applies in parts.items() if applies)
        return f"adaptive: {used}" if used else "adaptive"

    def to_json(self) -> dict[str, Any]:
        """Return the entry "adaptive" of an attack's JSON."""
        entries: dict[str, Any] = {
            "used": self.adaptive,
            "form": self.form,
            "defense": self.defense.description,
            "repeated": list(self.repeated),
            "compared_share": self.compared_share,
        }
        if self.variation is not None:
            tried = self.variation.correlations.items()
            entries |= {
                "total_variation": self.variation.value,
                "total_variation_from": self.variation.origin,
                "public_correlations": {
                    f"{weight:g}": value for weight, value in tried
                },
            }
        if self.local_steps:
            entries["local_steps"] = self.local_steps
        return entries


def _steps_in_words(victims: Victims) -> str:
    """Return how the local steps of victims are repeated; empty if there is one."""
    steps, updates = victims.steps, victims.observations[0].batch_sizes
    if len(updates) < 2:
        return ""
    if steps.kind == "gradient":
        return f"{len(updates)} steps taken for one"
    images = "images shared by epochs" if steps.rows else "an image for each place"
    orders = ", average over orders" if steps.has_orders else ""
    return f"{len(updates)} steps unrolled, {images}{orders}"


def _compared_share(victims: Victims, simulated: SimulatedDefense) -> float:
    if not simulated.prunes:
        return 1.0
    sent = sum(int((array != 0).sum()) for array in victims.updates.values())
    return sent / sum(array.numel() for array in victims.updates.values())
