"""A challenge as something to attack, audited in the same way as a recorded run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from instahide_fl.attacks.registry import ATTACKS
from instahide_fl.audit.scoring.ground_truth import GroundTruth, asked_about
from instahide_fl.audit.undefended import undefended_config, undefended_truth
from instahide_fl.challenge.files import SETTINGS, PublishedChallenge, read_published
from instahide_fl.challenge.make import CLIENT, ROUND
from instahide_fl.challenge.other_images import other_images
from instahide_fl.challenge.settings import ChallengeSettings, PublishedPool
from instahide_fl.config import Config
from instahide_fl.data.datasets import augmentation_for
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import (
    AttackError,
    DataError,
    PoolError,
    ThreatModelError,
    TranscriptError,
)
from instahide_fl.metrics.candidates import Candidates
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.threat_model import Knowledge, ThreatModel, threat_model
from instahide_fl.transcript.truth import ClientTruth, read_truth, truth_path
from instahide_fl.transcript.view import AdversaryView, KnownMapping, Observation
from instahide_fl.types import ChannelStatistics

HOLDERS = ("encodings-holder", "auditor-of-encodings")
"""Adversaries who have encodings."""
CHALLENGE_ATTACKS = ("decode_encodings", "carlini")
"""Attacks made for challenges, which run unasked even where they are slow."""


@dataclass(frozen=True)
class ChallengeTarget:
    """Encodings of one client, "challenge", in one round.

    Attributes:
        config: The settings that were published, as those of a run.
        statistics: Constants that private images are normalised with.
        encodings: f32[E,C,H,W], normalised.
        soft_targets: f32[E,K].
        pool: The public images; None if they are not at hand, or none were mixed in.
        truth: Originals and keys; None where nobody knows them.
        notes: Sentences that say what had to be assumed, or is not at hand.
        candidates: Images that no encoding mixes; None without the truth or the data
            set.
    """

    config: Config
    statistics: ChannelStatistics
    encodings: Tensor
    soft_targets: Tensor
    pool: MixingPool | None
    truth: ClientTruth | None
    notes: tuple[str, ...] = ()
    candidates: Candidates | None = None

    @property
    def transcripts(self) -> Sequence[RoundTranscript]:
        """No transcripts: nothing was trained."""
        return ()

    @cached_property
    def ground_truth(self) -> GroundTruth | None:
        """Originals and keys, prepared for scoring; None where nobody knows them."""
        if self.truth is None:
            return None
        return GroundTruth(
            {(ROUND, CLIENT): self.truth},
            self.statistics,
            self.num_classes,
            augmentation_for(self.config.data, self.image_shape),
            candidates=self.candidates,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        channels, height, width = self.encodings.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """K."""
        return self.soft_targets.shape[1]

    def view(self, adversary: ThreatModel) -> AdversaryView:
        """Return what an adversary has of the challenge.

        Raises:
            ThreatModelError: it holds no encodings, or knows what only the truth tells.
        """
        knows = adversary.knows
        if Knowledge.ENCODINGS not in knows:
            raise ThreatModelError(
                f"a challenge consists of encodings, which the threat model "
                f"{adversary.name} does not have: choose {' or '.join(HOLDERS)}"
            )
        mapping = None
        if Knowledge.MAPPING in knows:
            if self.truth is None:
                raise ThreatModelError(
                    f"the threat model {adversary.name} gives mapping and coefficients "
                    f"of the key, which only truth/ tells, and this challenge has "
                    f"none: choose encodings-holder"
                )
            key = self.truth.key
            mapping = KnownMapping(key.private_index, key.coefficients)
        observation = Observation(
            round=ROUND,
            client=CLIENT,
            num_examples=0,
            learning_rate_factor=1.0,
            kind="gradient",
            encodings=self.encodings,
            soft_targets=self.soft_targets if Knowledge.LABELS in knows else None,
            mapping=mapping,
        )
        return AdversaryView(
            threat_model=adversary,
            config=self.config,
            statistics=self.statistics,
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            observations=(observation,),
            rounds=(),
            pool=self.pool if Knowledge.POOL in knows else None,
            mixed_candidates=asked_about(adversary, self.ground_truth),
        )

    def undefended_reference(self) -> ChallengeTarget:
        """Return a challenge of the same images with nothing hidden.

        Raises:
            AttackError: the images are not known.
        """
        if self.truth is None:
            raise AttackError(
                "the truth is not known, so neither are the images to hide nothing of"
            )
        plain = undefended_truth(self.truth, self.statistics, self.num_classes)
        return ChallengeTarget(
            config=undefended_config(self.config),
            statistics=self.statistics,
            encodings=plain.encodings,
            soft_targets=plain.soft_targets,
            pool=None,
            truth=plain,
            candidates=self.candidates,
        )

    def about(self) -> dict[str, Any]:
        """Return that it is a challenge, and how many encodings it has."""
        count = len(self.encodings)
        return {
            "challenge": True,
            "round": ROUND,
            "batch_size": count,
            "encodings": count,
        }

    def accuracies(self) -> Mapping[int, float | None]:
        """Return nothing: no network was trained."""
        return {}


def open_challenge(
    folder: Path, pool: str | None = None, dataset: str | None = None
) -> ChallengeTarget:
    """Open a challenge to attack it.

    Args:
        folder: The challenge's folder, with or without `truth/`.
        pool: The folder of the public images, or `photos`. None takes the embedded pool
            if the challenge was made with it, and else does without.
        dataset: The images like the private ones that attacks may train on, named as in
            `data.dataset`. None leaves the name that was published.

    Raises:
        DataError: a file is missing, damaged, or does not fit the others.
        PoolError: the pool is not the one that the challenge was made with.
    """
    published = read_published(folder)
    settings = published.settings
    opened = _opened_pool(settings, pool)
    config = _config(settings, dataset or settings.data.dataset)
    if opened is not None and opened.folder is not None:
        config = config.with_values({"pool.source": str(opened.folder)})
    truth, statistics = _truth(folder, published), settings.statistics
    candidates = None
    if truth is not None:
        candidates = other_images(folder, config, statistics, truth)
    return ChallengeTarget(
        config=config,
        statistics=statistics,
        encodings=published.encodings,
        soft_targets=published.soft_targets,
        pool=opened,
        truth=truth,
        notes=tuple(_notes(published, opened)),
        candidates=candidates,
    )


def attacks_on_encodings(adversary: str | None) -> list[str]:
    """Return the names of all registered attacks that this adversary can run.

    Attacks that run only when named are left out, except those made for challenges.

    Args:
        adversary: The adversary that all are run as; None for each attack's own, of
            which only those who hold encodings count.

    Raises:
        ConfigError: there is no such adversary.
    """
    knows = None if adversary is None else threat_model(adversary).knows
    return [
        name
        for name, attack in ATTACKS.items()
        if (attack.by_default or name in CHALLENGE_ATTACKS)
        and (attack.threat_model in HOLDERS if knows is None else attack.needs <= knows)
    ]


def _notes(published: PublishedChallenge, pool: MixingPool | None) -> Iterator[str]:
    instahide = published.settings.instahide
    if published.assumed:
        yield (
            f"no {SETTINGS}: k = {instahide.num_mixed}, {instahide.scope}, and pixels "
            f"mapped to [-1, 1] are assumed, as in the original challenge"
        )
    if instahide.uses_pool and pool is None:
        yield "the public images are not at hand (--pool): attacks do without them"


def _config(settings: ChallengeSettings, dataset: str) -> Config:
    """Put what was published into the form of a run's settings."""
    fields = settings.instahide.model_dump(by_alias=True)
    values = {f"instahide.{name}": value for name, value in fields.items()}
    values |= {"data.dataset": dataset, "data.augment": settings.data.augment}
    return Config.from_run_config(values)


def _opened_pool(settings: ChallengeSettings, source: str | None) -> MixingPool | None:
    published = settings.pool
    if source is None and (published is None or published.source != "photos"):
        return None
    channels, height, _ = settings.image_shape
    if source in (None, "photos"):
        pool = MixingPool.photos(height, channels)
    else:
        pool = MixingPool.open(Path(str(source)).expanduser())
    if _is_another(pool, published):
        if source is None:
            return None
        raise PoolError(
            f"--pool {source} has sha256 {pool.sha256[:12]}, the challenge was made "
            f"with {published.sha256[:12] if published else ''}: give that one, or none"
        )
    pool.check_fits(settings.image_shape, settings.instahide.public_count)
    return pool


def _is_another(pool: MixingPool, published: PublishedPool | None) -> bool:
    return published is not None and pool.sha256 != published.sha256


def _truth(folder: Path, published: PublishedChallenge) -> ClientTruth | None:
    if not truth_path(folder, ROUND, CLIENT).is_file():
        return None
    try:
        truth = read_truth(folder, ROUND, CLIENT)
    except TranscriptError as error:
        raise DataError(str(error)) from None
    expected = (published.encodings.shape, published.soft_targets.shape)
    if (truth.encodings.shape, truth.soft_targets.shape) != expected:
        raise DataError(
            f"{folder}: truth/ is of encodings {tuple(truth.encodings.shape)}, "
            f"published are {tuple(published.encodings.shape)}: it belongs to another "
            f"challenge"
        )
    return truth


def open_truth(folder: Path) -> tuple[ClientTruth, ChannelStatistics]:
    """Open what a challenge hides, to score a decryption of it.

    Returns:
        Originals and keys, and the constants that images are normalised with.

    Raises:
        DataError: the truth is missing, or a file is damaged.
    """
    published = read_published(folder)
    truth = _truth(folder, published)
    if truth is None:
        raise DataError(
            f"{truth_path(folder, ROUND, CLIENT)} is missing: only whoever made a "
            f"challenge can score it, with the truth/ that challenge make wrote"
        )
    return truth, published.settings.statistics
