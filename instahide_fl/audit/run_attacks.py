"""Attacks a recorded run or a challenge, and scores what came out."""

from __future__ import annotations

import time
from dataclasses import replace

from instahide_fl.attacks.base import Attack, ProgressCallback, Reconstruction
from instahide_fl.audit.attack_result import AttackResult
from instahide_fl.audit.attack_target import Subject
from instahide_fl.audit.scoring.attack_scores import Scores
from instahide_fl.audit.scoring.score_reconstruction import score
from instahide_fl.audit.scoring.statistics_scores import score_statistics
from instahide_fl.audit.undefended import hides_nothing
from instahide_fl.errors import AttackError
from instahide_fl.rng import stream
from instahide_fl.transcript.threat_model import ThreatModel


def run_attack(
    subject: Subject,
    attack: Attack,
    model: ThreatModel,
    seed: int,
    progress: ProgressCallback,
    with_control: bool = True,
) -> AttackResult:
    """Attack, and score what came out if the truth is known.

    Args:
        subject: a recorded run or a challenge.
        attack: with its settings.
        model: the adversary.
        seed: of starting points and of the baselines' noise.
        progress: told how far the attack is; the control counts as much as the attack.
        with_control: also attack the same clients where nothing is hidden.

    Raises:
        ThreatModelError: the adversary lacks what the attack needs.
        AttackError: the attack does not apply here.
    """
    hides = not hides_nothing(subject.config)
    note = _no_control(attack, hides, with_control)
    parts = 1 if note else 2
    start = time.perf_counter()
    found = _reconstruct(
        subject, attack, model, seed, lambda done, total: progress(done, parts * total)
    )
    seconds = time.perf_counter() - start
    scores = _scored(subject, found, seed)
    control: Scores | None = None if hides else scores
    if not note:
        try:
            control = _control(
                *(subject, attack, model, seed),
                lambda done, total: progress(total + done, 2 * total),
            )
        except AttackError as error:
            note = str(error)
    by_round = _by_round(subject, found, seed)
    return AttackResult(
        attack, model, subject, seed, seconds, found, scores, by_round, control, note
    )


def _no_control(attack: Attack, hides: bool, wanted: bool) -> str:
    """Return why there is no second attack; empty if there is one."""
    if not hides:
        return "nothing is hidden here in the first place"
    return attack.no_reference if wanted else "not asked for"


def _control(
    subject: Subject,
    attack: Attack,
    model: ThreatModel,
    seed: int,
    progress: ProgressCallback,
) -> Scores:
    plain = subject.control()
    return _scored(plain, _reconstruct(plain, attack, model, seed, progress), seed)


def _reconstruct(
    subject: Subject,
    attack: Attack,
    model: ThreatModel,
    seed: int,
    progress: ProgressCallback,
) -> Reconstruction:
    view = subject.view(model)
    attack.check(view)
    return attack.reconstruct(view, stream(seed, "attack", attack.name), progress)


def _scored(subject: Subject, found: Reconstruction, seed: int) -> Scores:
    if not subject.truths:
        return Scores.without_truth(found)
    scores = score(
        found,
        subject.truths,
        subject.statistics,
        subject.num_classes,
        stream(seed, "score"),
        subject.augmentation,
    )
    off = score_statistics(found, subject.truths, subject.config, subject.transcripts)
    return replace(scores, statistics=off)


def _by_round(subject: Subject, found: Reconstruction, seed: int) -> dict[int, Scores]:
    rounds = sorted({one.round for one in found.recovered})
    if len(rounds) < 2:
        return {}
    return {
        number: _scored(
            subject,
            replace(
                found,
                recovered=tuple(one for one in found.recovered if one.round == number),
            ),
            seed,
        )
        for number in rounds
    }
