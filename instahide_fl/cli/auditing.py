"""What the commands `attack` and `challenge attack` share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from instahide_fl.cli.common import console, errors
from instahide_fl.config import Config, Scalar, parse_assignment
from instahide_fl.errors import ConfigError

if TYPE_CHECKING:
    from instahide_fl.attacks.base import Attack
    from instahide_fl.audit.attack_result import AttackResult
    from instahide_fl.audit.attack_target import AttackTarget
    from instahide_fl.audit.scoring.attack_scores import ImageSimilarity
    from instahide_fl.audit.scoring.candidate_scores import CandidateScores
    from instahide_fl.metrics.scores import SsimScores, Summary
    from instahide_fl.transcript.threat_model import ThreatModel

Names = Annotated[
    list[str] | None,
    typer.Option(
        "--attack",
        metavar="NAME",
        help="An attack; may be repeated. Default: all that apply, except slow ones.",
    ),
]
ThreatModelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The adversary; default: each attack's own."),
]
SettingsOfAttacks = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="ATTACK.KEY=VALUE",
        help="A setting of an attack, e.g. dlg.restarts=5.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the attacks' starting points.")]
ReferenceOption = Annotated[
    bool,
    typer.Option(
        "--control/--no-control",
        help="Attack the same images without any defence as well "
        "(the undefended reference).",
    ),
]


def settings_by_attack(assignments: Sequence[str]) -> dict[str, dict[str, Scalar]]:
    """Sort settings by the attack that they are for.

    Args:
        assignments: The assignments as typed, ATTACK.KEY=VALUE.

    Returns:
        The settings of each attack that has any, by its name.

    Raises:
        ConfigError: an assignment names no attack.
    """
    from instahide_fl.attacks.registry import ATTACKS

    settings: dict[str, dict[str, Scalar]] = {}
    for key, value in map(parse_assignment, assignments):
        name, dot, setting = key.partition(".")
        if not dot or name not in ATTACKS:
            raise ConfigError(
                f"--set {key}: attacks' settings are ATTACK.KEY, with ATTACK one of "
                f"{', '.join(ATTACKS)}"
            )
        settings.setdefault(name, {})[setting] = value
    return settings


def attacks_to_run(
    names: Sequence[str] | None,
    adversary: str | None,
    config: Config,
    settings: Mapping[str, Mapping[str, Scalar]],
    usual: Sequence[str] | None = None,
) -> list[tuple[Attack, ThreatModel]]:
    """Build the attacks; settings of one that does not run are a mistake.

    Args:
        names: The attacks' names; None for the usual ones.
        adversary: The adversary that all are run as; None for each attack's own.
        config: The settings of what is attacked.
        settings: The settings of each attack that has any, by its name.
        usual: The attacks taken without names; None for all but slow ones.

    Raises:
        ConfigError: a name or a setting is not valid.
    """
    from instahide_fl.attacks.registry import ATTACKS
    from instahide_fl.audit.run_attacks import build_attacks

    if usual is None:
        usual = [
            name for name, attack in ATTACKS.items() if attack.runs_by_default(config)
        ]
    chosen = list(dict.fromkeys(names or usual))
    for name in settings.keys() - set(chosen):
        raise ConfigError(f"--set {name}. ...: add --attack {name}, or leave it out")
    return build_attacks(chosen, settings, config, adversary or "")


def attack_and_print(
    attack_target: AttackTarget,
    attacks: Sequence[tuple[Attack, ThreatModel]],
    seed: int,
    folder: Path,
    with_reference: bool,
    strict: bool,
) -> list[AttackResult]:
    """Run attacks with bars of their progress, and print why some are skipped.

    Args:
        attack_target: A recorded run or a challenge.
        attacks: Attacks, each with the adversary that it is run as.
        seed: The seed of starting points.
        folder: The folder for NAME.json and NAME.png.
        with_reference: Whether to attack the same with nothing hidden as well.
        strict: Whether an attack that does not apply is an error; it is skipped
            otherwise.

    Returns:
        The results of the attacks that apply.

    Raises:
        AttackError: an attack does not apply.
        DataError: an attack lacks images to train on.
        PoolError: an attack lacks the public images.
        ThreatModelError: an adversary lacks what an attack needs.
    """
    from instahide_fl.audit.run_attacks import SkippedAttack, run_attacks
    from instahide_fl.progress import steps_bar

    results, show_progress = [], partial(steps_bar, console)
    for outcome in run_attacks(
        attack_target=attack_target,
        attacks=attacks,
        seed=seed,
        folder=folder,
        with_reference=with_reference,
        show_progress=show_progress,
    ):
        if not isinstance(outcome, SkippedAttack):
            results.append(outcome)
        elif strict:
            raise outcome.error
        else:
            console.print(f"{outcome.name}: left out: {outcome.error}", markup=False)
    return results


def print_results(results: Sequence[AttackResult]) -> None:
    """Print a table of all results, at least one, and the verdict on the method."""
    from instahide_fl.audit.scoring.verdict import worst

    table = Table()
    for heading in ("attack", "adversary", "encoding", "private", "chance", "verdict"):
        table.add_column(heading, overflow="fold")
    for result in results:
        table.add_row(*_cells(result))
    console.print(table)
    console.print(
        "SSIM, mean [95% interval] (best) of n images, in the better sign; |x|: of "
        "absolute values of normalised pixels; chance: the best baseline; top-1 of N: "
        "how often the true image is the most similar of N [95% interval]",
        markup=False,
    )
    config = results[0].attack_target.config.instahide
    verdict = worst(result.verdict for result in results)
    console.print(f"method {config.method}: {verdict}", markup=False)
    for result in results:
        for line in _key_parts(result):
            console.print(f"{result.attack.name}{line}", markup=False)
        for caveat in result.scores.caveats:
            errors.print(f"{result.attack.name}: {caveat}")


def results_as_json(
    results: Sequence[AttackResult], folder: Path
) -> dict[str, dict[str, Any]]:
    """Return the results by file stem, as in attacks/NAME.json.

    Args:
        results: The results of attacks.
        folder: The folder that they were written to.
    """
    return {
        result.file_stem: json.loads((folder / f"{result.file_stem}.json").read_text())
        for result in results
    }


def _cells(result: AttackResult) -> list[str]:
    private, chance = result.scores.private, ""
    if private is not None:
        plain = {
            name: scores.in_better_sign for name, scores in private.baselines.items()
        }
        chance = _baselines(plain)
        if private.folded is not None:
            chance += f"\n|x| {_baselines(private.folded.baselines)}"
    if (candidates := result.scores.candidates) is not None:
        chance += f"\ntop-1 {candidates.decisive.class_chance:.2%}"
    return [
        result.attack.name,
        result.threat_model.name,
        _ssim(result.scores.encoding),
        _ssim(private) + _identified(result.scores.candidates),
        chance,
        result.verdict,
    ]


def _baselines(baselines: Mapping[str, SsimScores]) -> str:
    """Return the mean of the best baseline, and its name."""
    best = max(baselines, key=lambda name: baselines[name].ssim.mean)
    words = {"no_information": "a guess", "matched_noise": "noise"}
    name = words.get(best, best.replace("_", " "))
    return f"{baselines[best].ssim.mean:.2f} {name}"


def _identified(candidates: CandidateScores | None) -> str:
    """Say how often the true image comes first among candidates."""
    if candidates is None:
        return ""
    ranked = candidates.decisive
    low, high = ranked.interval(1)
    return f"\ntop-1 of {ranked.size:,}: {ranked.top(1):.1%} [{low:.1%}, {high:.1%}]"


def _key_parts(result: AttackResult) -> Iterator[str]:
    """Say what an attack found out that the table has no columns for."""
    from instahide_fl.audit.scoring.public_image_scores import FIRST

    if (keys := result.scores.keys) is not None:
        yield f": keys of {keys.correct:,} of {keys.count:,} encodings"
    if (membership := result.scores.membership) is not None:
        yield f": {membership.in_words()}"
    for ranking, scores in result.scores.components.items():
        yield (
            f", {ranking}: the largest public image of an encoding is among the "
            f"{FIRST} best of {scores.pool_size:,} for {scores.largest():.1%} (chance "
            f"{scores.chance(FIRST):.2%})"
        )


def _ssim(similarity: ImageSimilarity | None) -> str:
    if similarity is None:
        return ""
    text = _mean(similarity.attack.sign_ssim)
    if similarity.folded is not None:
        text += f"\n|x| {_mean(similarity.folded.attack.ssim)}"
    return text


def _mean(ssim: Summary) -> str:
    low, high = ssim.interval or (ssim.mean, ssim.mean)
    interval = f"[{low:.2f}, {high:.2f}]"
    return f"{ssim.mean:.2f} {interval} ({ssim.best:.2f}) n={ssim.count:,}"
