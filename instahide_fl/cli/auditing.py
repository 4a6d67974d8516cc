"""What the commands `attack` and `challenge attack` share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from instahide_fl.cli.common import console, errors
from instahide_fl.config import Config, Scalar, parse_assignment
from instahide_fl.errors import (
    AttackError,
    ConfigError,
    DataError,
    PoolError,
    ThreatModelError,
)

if TYPE_CHECKING:
    from instahide_fl.attacks.base import Attack
    from instahide_fl.audit.attack_result import AttackResult
    from instahide_fl.audit.attack_target import Subject
    from instahide_fl.audit.scoring.attack_scores import Column
    from instahide_fl.transcript.threat_model import ThreatModel

Names = Annotated[
    list[str] | None,
    typer.Option(
        "--attack", metavar="NAME", help="Default: all that apply, but slow ones."
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
Seed = Annotated[int, typer.Option(min=0, help="Of starting points.")]
ControlOption = Annotated[
    bool,
    typer.Option(help="Attack the same images without any defence as well."),
]


def settings_by_attack(assignments: Sequence[str]) -> dict[str, dict[str, Scalar]]:
    """Sort settings by the attack that they are for.

    Args:
        assignments: as typed, ATTACK.KEY=VALUE.

    Raises:
        ConfigError: one names no attack.
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
        names: of attacks; None for the usual ones.
        adversary: whom all are run as; None for each attack's own.
        config: of what is attacked.
        settings: by attack.
        usual: taken without names; None for all but slow ones.

    Raises:
        ConfigError: a name or a setting is not valid.
    """
    from instahide_fl.attacks.registry import ATTACKS, build_attack
    from instahide_fl.audit.attack_result import adversary_for

    if usual is None:
        usual = [name for name, one in ATTACKS.items() if one.by_default]
    wanted = list(dict.fromkeys(names or usual))
    for name in settings.keys() - set(wanted):
        raise ConfigError(f"--set {name}. ...: add --attack {name}, or leave it out")
    attacks = [build_attack(name, settings.get(name, {})) for name in wanted]
    return [(one, adversary_for(one, config, adversary or "")) for one in attacks]


def run_attacks(
    subject: Subject,
    chosen: Sequence[tuple[Attack, ThreatModel]],
    seed: int,
    control: bool,
    folder: Path,
    strict: bool,
) -> list[AttackResult]:
    """Run attacks one by one, and write down what each did.

    Args:
        subject: a recorded run or a challenge.
        chosen: attacks, and as whom.
        seed: of starting points.
        control: whether to attack the same with nothing hidden as well.
        folder: for NAME.json and NAME.png.
        strict: whether an attack that does not apply is an error; it is left out
            otherwise.

    Raises:
        AttackError: an attack does not apply.
        DataError: an attack lacks images to train on.
        PoolError: an attack lacks the public images.
        ThreatModelError: an adversary lacks what an attack needs.
    """
    from instahide_fl.audit.attack_result import save_result
    from instahide_fl.audit.pictures import save_attack_pictures
    from instahide_fl.audit.run_attacks import run_attack
    from instahide_fl.progress import steps_bar

    results = []
    for one, adversary in chosen:
        try:
            with steps_bar(console, one.name) as advance:
                result = run_attack(subject, one, adversary, seed, advance, control)
        except (AttackError, DataError, PoolError, ThreatModelError) as error:
            if strict:
                raise
            console.print(f"{one.name}: left out: {error}", markup=False)
            continue
        save_result(result, folder)
        save_attack_pictures(result, folder)
        results.append(result)
    return results


def print_results(results: Sequence[AttackResult]) -> None:
    """Print a table of all, at least one, and the verdict on the method."""
    from instahide_fl.audit.scoring.verdict import worst

    table = Table()
    for heading in ("attack", "adversary", "encoding", "private", "chance", "verdict"):
        table.add_column(heading, overflow="fold")
    for one in results:
        scores = one.scores
        table.add_row(
            one.attack.name,
            one.threat_model.name,
            _ssim(scores.encoding),
            _ssim(scores.private),
            f"{scores.private.no_information.sign_ssim.mean:.2f}"
            if scores.private
            else "",
            one.verdict,
        )
    console.print(table)
    console.print("SSIM, mean (best), in the better sign")
    config = results[0].subject.config.instahide
    console.print(
        f"method {config.method}: {worst(one.verdict for one in results)}", markup=False
    )
    for one in results:
        for line in _key_parts(one):
            console.print(f"{one.attack.name}{line}", markup=False)
        for caveat in one.scores.caveats:
            errors.print(f"{one.attack.name}: {caveat}")


def _key_parts(result: AttackResult) -> Iterator[str]:
    """Say what an attack found of keys, which the table has no columns for."""
    from instahide_fl.audit.scoring.public_image_scores import FIRST

    scores = result.scores
    if (keys := scores.keys) is not None:
        yield f": keys of {keys.found:,} of {keys.count:,} encodings"
    for score, found in scores.components.items():
        yield (
            f", {score}: the largest public image of an encoding is among the {FIRST} "
            f"best of {found.pool_size:,} for {found.largest():.1%} (chance "
            f"{found.chance(FIRST):.2%})"
        )


def _ssim(column: Column | None) -> str:
    if column is None:
        return ""
    found = column.attack.sign_ssim
    return f"{found.mean:.2f} ({found.best:.2f})"
