"""The command `attack`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from instahide_fl.cli.common import console, errors
from instahide_fl.config import Scalar, parse_assignment
from instahide_fl.errors import AttackError, ConfigError, ThreatModelError

if TYPE_CHECKING:
    from instahide_fl.attacks.attack import Attack
    from instahide_fl.attacks.scores import Column
    from instahide_fl.report.audit import AttackResult, RecordedRun
    from instahide_fl.transcript.threat_model import ThreatModel


def attack(
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run folder with a transcript.")
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--attack", metavar="NAME", help="Default: all that apply, but slow ones."
        ),
    ] = None,
    threat_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The adversary; default: each attack's own."),
    ] = None,
    rounds: Annotated[
        str, typer.Option(help='Recorded rounds to attack, such as "1, 5-10".')
    ] = "",
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="ATTACK.KEY=VALUE",
            help="A setting of an attack, e.g. dlg.restarts=5.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of starting points.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: attacks/ in the run.")
    ] = None,
    control: Annotated[
        bool,
        typer.Option(help="Attack the same clients without any defence as well."),
    ] = True,
    show_list: Annotated[
        bool, typer.Option("--list", help="Explain every attack and adversary.")
    ] = False,
) -> None:
    """Attack a recorded run, score what comes out, and say what leaked."""
    if show_list:
        _print_list()
        return
    if run_folder is None:
        raise ConfigError("give the folder of a run, or --list")
    from instahide_fl.report.audit import RESULTS, open_recorded_run
    from instahide_fl.transcript.threat_model import threat_model as named

    if threat_model is not None:
        named(threat_model)
    settings = _by_attack(assignments or [])
    chosen = _chosen(names, settings)
    with console.status("opening the run"):
        run = open_recorded_run(run_folder, rounds)
    folder = out or run_folder / RESULTS
    results = []
    for one in chosen:
        adversary = named(threat_model or one.threat_model)
        try:
            result = _run_one(run, one, adversary, seed, control)
        except (AttackError, ThreatModelError) as error:
            if names:
                raise
            console.print(f"{one.name}: left out: {error}", markup=False)
            continue
        _save(result, folder)
        results.append(result)
    if not results:
        raise AttackError(f"no attack applies to the run in {run_folder}")
    _print_results(results)
    console.print(f"written to {folder}", markup=False)


def _by_attack(assignments: Sequence[str]) -> dict[str, dict[str, Scalar]]:
    """Sort settings by the attack that they are for.

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


def _chosen(
    names: list[str] | None, settings: dict[str, dict[str, Scalar]]
) -> list[Attack]:
    """Build the attacks; settings of one that does not run are a mistake.

    Raises:
        ConfigError: a name or a setting is not valid.
    """
    from instahide_fl.attacks.registry import ATTACKS, build_attack

    usual = [name for name, one in ATTACKS.items() if one.by_default]
    wanted = list(dict.fromkeys(names or usual))
    for name in settings.keys() - set(wanted):
        raise ConfigError(f"--set {name}. ...: add --attack {name}, or leave it out")
    return [build_attack(name, settings.get(name, {})) for name in wanted]


def _run_one(
    run: RecordedRun, one: Attack, adversary: ThreatModel, seed: int, control: bool
) -> AttackResult:
    from instahide_fl.progress import steps_bar
    from instahide_fl.report.audit import run_attack

    with steps_bar(console, one.name) as advance:
        return run_attack(run, one, adversary, seed, advance, control)


def _save(result: AttackResult, folder: Path) -> None:
    from instahide_fl.report.attack_picture import save_attack_pictures
    from instahide_fl.report.audit import save_result

    save_result(result, folder)
    save_attack_pictures(result, folder)


def _print_results(results: Sequence[AttackResult]) -> None:
    from instahide_fl.attacks.verdict import worst

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
    for one in results:
        _print_key_parts(one)
    config = results[0].run.config.instahide
    console.print(
        f"method {config.method}: {worst(one.verdict for one in results)}", markup=False
    )
    for one in results:
        for caveat in one.scores.caveats:
            errors.print(f"{one.attack.name}: {caveat}")


def _print_key_parts(result: AttackResult) -> None:
    from instahide_fl.attacks.component_scoring import FIRST

    if signs := result.scores.signs:
        console.print(
            f"{result.attack.name}: {signs.right.mean():.1%} of signs right (chance "
            f"50%, a constant guess {signs.constant.mean():.1%})",
            markup=False,
        )
    for score, found in result.scores.components.items():
        console.print(
            f"{result.attack.name}, {score}: the largest public image of an encoding "
            f"is among the {FIRST} best of {found.pool_size:,} for "
            f"{found.largest():.1%} (chance {found.chance(FIRST):.2%})",
            markup=False,
        )


def _ssim(column: Column | None) -> str:
    if column is None:
        return ""
    found = column.attack.sign_ssim
    return f"{found.mean:.2f} ({found.best:.2f})"


def _print_list() -> None:
    from instahide_fl.attacks.registry import ATTACKS
    from instahide_fl.transcript.threat_model import THREAT_MODELS

    for one in ATTACKS.values():
        console.print(f"[bold]{one.name}[/bold]  {one.summary}", highlight=False)
        needs = ", ".join(sorted(one.needs))
        console.print(
            f"    needs {needs} ({one.threat_model}); {one.cost}; {one.source}",
            highlight=False,
            markup=False,
        )
    console.print("\nAdversaries (--threat-model):")
    for model in THREAT_MODELS.values():
        console.print(f"[bold]{model.name}[/bold]  {model.who}", highlight=False)
        knows = ", ".join(sorted(model.knows))
        console.print(f"    knows {knows}", highlight=False, markup=False)
