"""The command `attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instahide_fl.cli.auditing import (
    ControlOption,
    Names,
    Seed,
    SettingsOfAttacks,
    ThreatModelOption,
    attacks_to_run,
    print_results,
    run_attacks,
    settings_by_attack,
)
from instahide_fl.cli.common import console
from instahide_fl.errors import AttackError, ConfigError


def attack(
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run folder with a transcript.")
    ] = None,
    names: Names = None,
    threat_model: ThreatModelOption = None,
    rounds: Annotated[
        str, typer.Option(help='Recorded rounds to attack, such as "1, 5-10".')
    ] = "",
    assignments: SettingsOfAttacks = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: attacks/ in the run.")
    ] = None,
    control: ControlOption = True,
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
    from instahide_fl.audit.attack_result import RESULTS
    from instahide_fl.audit.recorded_run import open_recorded_run
    from instahide_fl.audit.tracked_result import track_result
    from instahide_fl.run_folder import RunFolder

    settings = settings_by_attack(assignments or [])
    with console.status("opening the run"):
        run = open_recorded_run(run_folder, rounds)
    chosen = attacks_to_run(names, threat_model, run.config, settings)
    folder = out or run_folder / RESULTS
    results = run_attacks(run, chosen, seed, control, folder, strict=bool(names))
    if not results:
        raise AttackError(f"no attack applies to the run in {run_folder}")
    if out is None:
        for one in results:
            track_result(one, RunFolder(run_folder))
    print_results(results)
    console.print(f"written to {folder}", markup=False)


def _print_list() -> None:
    from instahide_fl.attacks.registry import ATTACKS
    from instahide_fl.transcript.threat_model import THREAT_MODELS

    for one in ATTACKS.values():
        console.print(f"[bold]{one.name}[/bold]  {one.summary}", highlight=False)
        needs = one.needs_in_words()
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
