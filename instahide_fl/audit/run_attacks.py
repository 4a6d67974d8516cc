"""Attacks a recorded run or a challenge, scores what came out, and writes it down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from instahide_fl.attacks.base import (
    Attack,
    ProgressCallback,
    Reconstruction,
    ignore_progress,
    scale_progress,
)
from instahide_fl.attacks.registry import build_attack
from instahide_fl.audit.attack_result import AttackResult, adversary_for, save_result
from instahide_fl.audit.attack_target import AttackTarget
from instahide_fl.audit.pictures import save_attack_pictures
from instahide_fl.audit.scoring.attack_scores import AttackScores
from instahide_fl.audit.scoring.score_reconstruction import score_reconstruction
from instahide_fl.audit.scoring.statistics_scores import score_statistics
from instahide_fl.audit.undefended import hides_nothing
from instahide_fl.config import Config, Scalar
from instahide_fl.errors import (
    AttackError,
    DataError,
    InstaHideError,
    PoolError,
    ThreatModelError,
)
from instahide_fl.rng import stream
from instahide_fl.transcript.threat_model import ThreatModel

ProgressDisplay: TypeAlias = Callable[[str], AbstractContextManager[ProgressCallback]]
"""Opens a display for the name of an attack, and gives the callback to report to."""


def no_display(name: str) -> AbstractContextManager[ProgressCallback]:
    """Show no progress of an attack."""
    return nullcontext(ignore_progress)


@dataclass(frozen=True)
class SkippedAttack:
    """An attack that does not apply to its target.

    Attributes:
        name: The attack's name.
        error: The reason.
    """

    name: str
    error: InstaHideError


def build_attacks(
    names: Sequence[str],
    settings: Mapping[str, Mapping[str, Scalar]],
    config: Config,
    adversary: str = "",
) -> list[tuple[Attack, ThreatModel]]:
    """Return attacks with their settings, each with the adversary that it is run as.

    Args:
        names: The attacks' names.
        settings: The settings of each attack that has any, by its name.
        config: The settings of what is attacked.
        adversary: The adversary that all are run as; empty for each attack's own.

    Raises:
        ConfigError: a name or a setting is not valid.
    """
    attacks = [build_attack(name, settings.get(name, {})) for name in names]
    return [(attack, adversary_for(attack, config, adversary)) for attack in attacks]


def run_attacks(
    attack_target: AttackTarget,
    attacks: Sequence[tuple[Attack, ThreatModel]],
    seed: int,
    folder: Path,
    with_reference: bool = True,
    show_progress: ProgressDisplay = no_display,
) -> Iterator[AttackResult | SkippedAttack]:
    """Run attacks one by one, and save the result and the pictures of each.

    Args:
        attack_target: A recorded run or a challenge.
        attacks: Attacks, each with the adversary that it is run as.
        seed: The seed of starting points.
        folder: The folder for NAME.json and NAME.png.
        with_reference: Whether to attack the undefended reference as well.
        show_progress: Opens a display of progress for the name of an attack.

    Yields:
        The result of each attack when it is saved, or why it does not apply: it lacks
        knowledge, public images or images to train on, or is for other runs.
    """
    for attack, adversary in attacks:
        try:
            with show_progress(attack.name) as progress:
                result = run_attack(
                    attack_target=attack_target,
                    attack=attack,
                    adversary=adversary,
                    seed=seed,
                    progress=progress,
                    with_reference=with_reference,
                )
        except (AttackError, DataError, PoolError, ThreatModelError) as error:
            yield SkippedAttack(attack.name, error)
            continue
        save_result(result, folder)
        save_attack_pictures(result, folder)
        yield result


def run_attack(
    attack_target: AttackTarget,
    attack: Attack,
    adversary: ThreatModel,
    seed: int,
    progress: ProgressCallback,
    with_reference: bool = True,
) -> AttackResult:
    """Attack, and score what came out if the truth is known.

    Args:
        attack_target: A recorded run or a challenge.
        attack: The attack with its settings.
        adversary: The adversary that it is run as.
        seed: The seed of starting points and of the baselines' noise.
        progress: The callback for progress; the undefended reference counts as much as
            the attack.
        with_reference: Whether to attack the undefended reference as well: the same
            clients with nothing hidden.

    Raises:
        ThreatModelError: the adversary lacks what the attack needs.
        AttackError: the attack does not apply here.
    """
    hides = not hides_nothing(attack_target.config)
    why_no_reference = _why_no_reference(attack, hides, with_reference)
    num_parts = 1 if why_no_reference else 2
    start = time.perf_counter()
    reconstruction = _reconstruct(
        attack_target,
        attack,
        adversary,
        seed,
        scale_progress(progress, parts_done=0, num_parts=num_parts),
    )
    seconds = time.perf_counter() - start
    scores = _scored(attack_target, reconstruction, seed)
    undefended_scores: AttackScores | None = None if hides else scores
    if not why_no_reference:
        try:
            undefended_scores = _attack_reference(
                attack_target,
                attack,
                adversary,
                seed,
                scale_progress(progress, parts_done=1, num_parts=2),
            )
        except AttackError as error:
            why_no_reference = str(error)
    return AttackResult(
        attack=attack,
        threat_model=adversary,
        attack_target=attack_target,
        seed=seed,
        seconds=seconds,
        reconstruction=reconstruction,
        scores=scores,
        by_round=_scored_by_round(attack_target, reconstruction, seed),
        undefended_scores=undefended_scores,
        why_no_reference=why_no_reference,
    )


def _why_no_reference(attack: Attack, hides: bool, with_reference: bool) -> str:
    """Return why the undefended reference is not attacked; empty if it is."""
    if not hides:
        return "nothing is hidden here in the first place"
    return attack.no_reference if with_reference else "not asked for"


def _attack_reference(
    attack_target: AttackTarget,
    attack: Attack,
    adversary: ThreatModel,
    seed: int,
    progress: ProgressCallback,
) -> AttackScores:
    reference = attack_target.undefended_reference()
    reconstruction = _reconstruct(reference, attack, adversary, seed, progress)
    return _scored(reference, reconstruction, seed)


def _reconstruct(
    attack_target: AttackTarget,
    attack: Attack,
    adversary: ThreatModel,
    seed: int,
    progress: ProgressCallback,
) -> Reconstruction:
    view = attack_target.view(adversary)
    attack.check(view)
    return attack.reconstruct(view, stream(seed, "attack", attack.name), progress)


def _scored(
    attack_target: AttackTarget, reconstruction: Reconstruction, seed: int
) -> AttackScores:
    ground_truth = attack_target.ground_truth
    if ground_truth is None:
        return AttackScores.without_truth(reconstruction)
    scores = score_reconstruction(reconstruction, ground_truth, stream(seed, "score"))
    statistics = score_statistics(
        reconstruction, ground_truth, attack_target.config, attack_target.transcripts
    )
    return replace(scores, statistics=statistics)


def _scored_by_round(
    attack_target: AttackTarget, reconstruction: Reconstruction, seed: int
) -> dict[int, AttackScores]:
    """Return the scores of each round; empty if there is only one."""
    rounds = sorted({recovered.round for recovered in reconstruction.recovered})
    if len(rounds) < 2:
        return {}
    return {
        number: _scored(attack_target, _of_round(reconstruction, number), seed)
        for number in rounds
    }


def _of_round(reconstruction: Reconstruction, number: int) -> Reconstruction:
    recovered = [part for part in reconstruction.recovered if part.round == number]
    return replace(reconstruction, recovered=tuple(recovered))
