"""What scoring an attack gives: figures, those of its baselines, and images to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from instahide_fl.attacks.base import Reconstruction, Target
from instahide_fl.audit.scoring.key_scores import FoundKeys
from instahide_fl.audit.scoring.public_image_scores import (
    ComponentScores,
    ShownComponents,
)
from instahide_fl.audit.scoring.shown_images import ShownImages
from instahide_fl.audit.scoring.statistics_scores import StatisticsErrors
from instahide_fl.metrics.identification import Identification
from instahide_fl.metrics.labels import HardLabels, SoftLabels
from instahide_fl.metrics.scores import ImageScores, Summary


@dataclass(frozen=True)
class Column:
    """Reconstructed images against one kind of truth, and the same of baselines.

    Attributes:
        attack: of the reconstructions.
        no_information: of the mean of other images, for the same victims.
        matched_noise: of noise with the statistics of the reconstructions, matched to
            victims by the same rule; several draws together.
        other_images: of private images that the attack cannot be after, matched in the
            same way; None where there are none.
    """

    attack: ImageScores
    no_information: ImageScores
    matched_noise: ImageScores
    other_images: ImageScores | None = None

    @property
    def baselines(self) -> dict[str, ImageScores]:
        """What the attack is held against, by name."""
        known = {
            "no_information": self.no_information,
            "matched_noise": self.matched_noise,
        }
        others = self.other_images
        return known if others is None else {**known, "other_images": others}


@dataclass(frozen=True)
class Identified:
    """How often reconstructions, and the matched noise, pointed at their image."""

    attack: Identification
    matched_noise: Identification

    @property
    def chance(self) -> float:
        """What nothing better than chance reaches: a random draw, or the noise."""
        drawn = self.attack.chance / self.attack.count if self.attack.count else 1.0
        return max(drawn, self.matched_noise.precision)

    def to_json(self) -> dict[str, Any]:
        """Return it as it is written into an attack's file."""
        written = self.attack.to_json()
        return {**written, "chance": self.chance} if self.attack.count else written


@dataclass(frozen=True)
class Registered:
    """SSIM in the best position: shifted by up to four pixels, plain or mirrored.

    The best of many positions lifts any image, so the same is done to the guess. It
    does not enter the verdict.

    Attributes:
        attack: of the reconstructions, in their better sign.
        no_information: of the mean of other images.
    """

    attack: Summary
    no_information: Summary

    def to_json(self) -> dict[str, Any]:
        """Return it as it is written into an attack's file."""
        return {
            "ssim": self.attack.to_json(),
            "no_information": self.no_information.to_json(),
        }


@dataclass(frozen=True)
class Scores:
    """How well an attack did.

    Attributes:
        target: what it recovered.
        reconstructions: images that it returned.
        private: its images against private ones; None if there are none.
        encoding: against encodings; None likewise, or if it recovered private images.
        identified: None where the scorer had to match by similarity.
        lpips: of the private column in the better sign, or why there is none.
        hard_labels: None if it named no classes.
        soft_labels: None if it gave none.
        registered: None unless private images were recovered from augmented ones.
        shown: to draw.
        caveats: what to know when reading the figures.
        keys: None if it looked for none.
        statistics: of batches; a reason why they were not scored, or None if it gave
            none.
        components: how well public images were found, by the score used; empty if none
            were sought.
        shown_components: to draw; None likewise.
    """

    target: Target
    reconstructions: int
    private: Column | None
    encoding: Column | None
    identified: Identified | None
    lpips: Summary | str
    hard_labels: HardLabels | None
    soft_labels: SoftLabels | None
    registered: Registered | None
    shown: tuple[ShownImages, ...]
    caveats: tuple[str, ...]
    keys: FoundKeys | None = None
    statistics: StatisticsErrors | str | None = None
    components: Mapping[str, ComponentScores] = field(default_factory=dict)
    shown_components: ShownComponents | None = None

    @classmethod
    def without_truth(cls, reconstruction: Reconstruction) -> Scores:
        """Return what can be said of an attack where nobody knows the truth."""
        reason = "the truth is not known, so nothing was scored"
        return cls(
            target=reconstruction.target,
            reconstructions=sum(
                len(one.images)
                for one in reconstruction.recovered
                if one.images is not None
            ),
            private=None,
            encoding=None,
            identified=None,
            lpips=reason,
            hard_labels=None,
            soft_labels=None,
            registered=None,
            shown=(),
            caveats=(reason,),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what is written into an attack's file: metrics, baseline and so on."""
        metrics: dict[str, Any] = {}
        if self.private:
            metrics["private"] = {
                **self.private.attack.to_json(),
                "identification": self._identification(),
                "lpips": self.lpips.to_json()
                if isinstance(self.lpips, Summary)
                else {"absent": self.lpips},
            }
        if self.registered:
            metrics["private"]["registered"] = self.registered.to_json()
        if self.encoding:
            metrics["encoding"] = self.encoding.attack.to_json()
        if labels := self._labels():
            metrics["labels"] = labels
        if self.keys:
            metrics["keys"] = self.keys.to_json()
        if isinstance(self.statistics, str):
            metrics["statistics"] = {"absent": self.statistics}
        elif self.statistics is not None:
            metrics["statistics"] = self.statistics.to_json()
        if self.components:
            metrics["components"] = {
                name: one.to_json() for name, one in self.components.items()
            }
        return {
            "metrics": metrics,
            "baseline": self._baseline(),
            "per_image": self._per_image(),
            "caveats": list(self.caveats),
        }

    def _identification(self) -> dict[str, Any]:
        if self.identified is None:
            return {"absent": "images were matched by similarity, which decides it"}
        return self.identified.to_json()

    def _labels(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.hard_labels:
            found["hard"] = self.hard_labels.to_json()
        if self.soft_labels:
            found["soft"] = self.soft_labels.to_json()
        return found

    def _per_image(self) -> dict[str, list[float]]:
        """Return SSIM in the better sign, image by image, and that of the guesses."""
        columns: dict[str, ImageScores] = {}
        if self.private:
            columns["private"] = self.private.attack
            columns["no_information"] = self.private.no_information
        if self.encoding:
            columns["encoding"] = self.encoding.attack
        return {
            name: [round(value, 4) for value in scores.each.tolist()]
            for name, scores in columns.items()
        }

    def _baseline(self) -> dict[str, Any]:
        columns = {"private": self.private, "encoding": self.encoding}
        present = {name: column for name, column in columns.items() if column}
        if not self.private:
            return {}
        uninformed = self.private.no_information
        return {
            "ssim": uninformed.ssim.mean,
            "psnr": uninformed.psnr.mean,
            **{
                baseline: {
                    name: column.baselines[baseline].to_json()
                    for name, column in present.items()
                    if baseline in column.baselines
                }
                for baseline in self.private.baselines
            },
        }
