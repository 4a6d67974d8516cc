"""What scoring an attack gives: figures, those of its baselines, and images to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from instahide_fl.attacks.base import Reconstruction, Target
from instahide_fl.audit.scoring.candidate_scores import CandidateScores
from instahide_fl.audit.scoring.folded_scores import FoldedSimilarity
from instahide_fl.audit.scoring.key_scores import KeyCounts
from instahide_fl.audit.scoring.membership_scores import MembershipScores
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
class ImageSimilarity:
    """How alike reconstructions and one kind of truth are, and what baselines reach.

    Attributes:
        attack: The scores of the reconstructions.
        no_information: The scores of the mean of other images, for the same victims.
        matched_noise: The scores of noise with the statistics of the reconstructions,
            matched to victims by the same rule; several draws together.
        other_images: The scores of private images that the attack cannot be after,
            matched in the same way; None where there are none.
        folded: The same without signs of pixels; None if that was not scored.
    """

    attack: ImageScores
    no_information: ImageScores
    matched_noise: ImageScores
    other_images: ImageScores | None = None
    folded: FoldedSimilarity | None = None

    @property
    def baselines(self) -> dict[str, ImageScores]:
        """What the attack is held against, by name."""
        baselines = {
            "no_information": self.no_information,
            "matched_noise": self.matched_noise,
        }
        if self.other_images is not None:
            baselines["other_images"] = self.other_images
        return baselines

    def to_json(self) -> dict[str, Any]:
        """Return the attack's scores as JSON values, as in attacks/NAME.json."""
        folded = {"folded": self.folded.to_json()} if self.folded else {}
        return {**self.attack.to_json(), **folded}


@dataclass(frozen=True)
class IdentificationScores:
    """How often reconstructions, and the matched noise, pointed at their image."""

    attack: Identification
    matched_noise: Identification

    @property
    def chance(self) -> float:
        """What nothing better than chance reaches: a random draw, or the noise."""
        drawn = self.attack.chance / self.attack.count if self.attack.count else 1.0
        return max(drawn, self.matched_noise.precision)

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        written = self.attack.to_json()
        return {**written, "chance": self.chance} if self.attack.count else written


@dataclass(frozen=True)
class BestPositionSimilarity:
    """SSIM in the best position: shifted by up to four pixels, plain or mirrored.

    The best of many positions lifts any image, so the same is done to the guess. It
    does not enter the verdict.

    Attributes:
        attack: The SSIM of the reconstructions, in their better sign.
        no_information: The SSIM of the mean of other images.
    """

    attack: Summary
    no_information: Summary

    def to_json(self) -> dict[str, Any]:
        """Return the scores as JSON values, as in attacks/NAME.json."""
        return {
            "ssim": self.attack.to_json(),
            "no_information": self.no_information.to_json(),
        }


@dataclass(frozen=True)
class AttackScores:
    """How well an attack did.

    Attributes:
        target: What it recovered.
        reconstructions: The number of images that it returned.
        private: Its images against private ones; None if there are none.
        encoding: Its images against encodings; None if there are none, or if it
            recovered private images.
        identified: How often its images point at the right one; None where the scorer
            had to match by similarity.
        lpips: The perceptual distance to private images, in the better sign, or why
            there is none.
        hard_labels: The classes that it named; None if it named none.
        soft_labels: The soft labels that it gave; None if it gave none.
        best_position: SSIM in the best position; None unless private images were
            recovered from augmented ones.
        shown: The images to draw.
        caveats: Sentences to know when reading the figures.
        keys: The keys that are right; None if it looked for none.
        statistics: The errors of statistics of batches, or why they were not scored;
            None if it gave none.
        components: How well public images were ranked, by the name of the ranking;
            empty if none were sought.
        shown_components: Rankings to draw; None if no public images were sought.
        candidates: How often images identify the true one among many that nobody
            trained on; None without images or candidates.
        membership: How well members were told from held-out images; None if that was
            not asked.
    """

    target: Target
    reconstructions: int
    private: ImageSimilarity | None
    encoding: ImageSimilarity | None
    identified: IdentificationScores | None
    lpips: Summary | str
    hard_labels: HardLabels | None
    soft_labels: SoftLabels | None
    best_position: BestPositionSimilarity | None
    shown: tuple[ShownImages, ...]
    caveats: tuple[str, ...]
    keys: KeyCounts | None = None
    statistics: StatisticsErrors | str | None = None
    components: Mapping[str, ComponentScores] = field(default_factory=dict)
    shown_components: ShownComponents | None = None
    candidates: CandidateScores | None = None
    membership: MembershipScores | None = None

    @classmethod
    def without_truth(cls, reconstruction: Reconstruction) -> AttackScores:
        """Return what can be said of an attack where nobody knows the truth."""
        reason = "the truth is not known, so nothing was scored"
        return cls(
            target=reconstruction.target,
            reconstructions=sum(
                len(recovered.images)
                for recovered in reconstruction.recovered
                if recovered.images is not None
            ),
            private=None,
            encoding=None,
            identified=None,
            lpips=reason,
            hard_labels=None,
            soft_labels=None,
            best_position=None,
            shown=(),
            caveats=(reason,),
        )

    @property
    def similarities(self) -> dict[str, ImageSimilarity]:
        """The similarity of images to each kind of truth that there is, by its name."""
        by_truth = {"private": self.private, "encoding": self.encoding}
        return {name: scores for name, scores in by_truth.items() if scores}

    def to_json(self) -> dict[str, Any]:
        """Return what is written into an attack's file: metrics, baseline and so on."""
        return {
            "metrics": self._metrics(),
            "baseline": self._baseline(),
            "per_image": self._per_image(),
            "caveats": list(self.caveats),
        }

    def _metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        if self.private:
            metrics["private"] = {
                **self.private.to_json(),
                "identification": self._identification(),
                "lpips": _or_absent(self.lpips),
            }
        if self.best_position:
            metrics["private"]["registered"] = self.best_position.to_json()
        if self.encoding:
            metrics["encoding"] = self.encoding.to_json()
        if labels := self._labels():
            metrics["labels"] = labels
        if self.keys:
            metrics["keys"] = self.keys.to_json()
        if self.statistics is not None:
            metrics["statistics"] = _or_absent(self.statistics)
        if self.membership:
            metrics["membership"] = self.membership.to_json()
        if self.components:
            metrics["components"] = {
                ranking: scores.to_json() for ranking, scores in self.components.items()
            }
        return metrics

    def _identification(self) -> dict[str, Any]:
        among = {} if self.candidates is None else self.candidates.to_json()
        if self.identified is None:
            reason = "images were matched by similarity, which decides it"
            return {"absent": reason, **among}
        return {**self.identified.to_json(), **among}

    def _labels(self) -> dict[str, Any]:
        labels: dict[str, Any] = {}
        if self.hard_labels:
            labels["hard"] = self.hard_labels.to_json()
        if self.soft_labels:
            labels["soft"] = self.soft_labels.to_json()
        return labels

    def _per_image(self) -> dict[str, list[float]]:
        """Return SSIM in the better sign, image by image, and that of the guesses."""
        scores: dict[str, ImageScores] = {}
        if self.private:
            scores["private"] = self.private.attack
            scores["no_information"] = self.private.no_information
        if self.encoding:
            scores["encoding"] = self.encoding.attack
        return {
            name: [round(value, 4) for value in images.each.tolist()]
            for name, images in scores.items()
        }

    def _baseline(self) -> dict[str, Any]:
        if not self.private:
            return {}
        uninformed = self.private.no_information
        return {
            "ssim": uninformed.ssim.mean,
            "psnr": uninformed.psnr.mean,
            **{
                baseline: {
                    truth: similarity.baselines[baseline].to_json()
                    for truth, similarity in self.similarities.items()
                    if baseline in similarity.baselines
                }
                for baseline in self.private.baselines
            },
        }


def _or_absent(scores: Summary | StatisticsErrors | str) -> dict[str, Any]:
    """Return figures, or the reason why there are none."""
    return {"absent": scores} if isinstance(scores, str) else {**scores.to_json()}
