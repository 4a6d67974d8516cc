"""The command `attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instahide_fl.cli.auditing import (
    Names,
    ReferenceOption,
    Seed,
    SettingsOfAttacks,
    ThreatModelOption,
    attack_and_print,
    attacks_to_run,
    print_results,
    results_as_json,
    settings_by_attack,
)
from instahide_fl.cli.common import console
from instahide_fl.cli.output_options import give_result
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
        Path | None,
        typer.Option(metavar="DIR", help="Results. Default: attacks/ in the run."),
    ] = None,
    with_reference: ReferenceOption = True,
    show_list: Annotated[
        bool, typer.Option("--list", help="Explain every attack and adversary.")
    ] = False,
) -> None:
    """Attack a recorded run, score the results, and say what leaked."""
    if show_list:
        _print_list()
        return
    if run_folder is None:
        raise ConfigError("give the folder of a run, or --list")
    from instahide_fl.audit.recorded_run import open_recorded_run
    from instahide_fl.audit.tracked_result import track_result
    from instahide_fl.run_folder import ATTACK_RESULTS, RunFolder

    settings = settings_by_attack(assignments or [])
    with console.status("opening the run"):
        run = open_recorded_run(run_folder, rounds)
    attacks = attacks_to_run(names, threat_model, run.config, settings)
    folder = out or run_folder / ATTACK_RESULTS
    results = attack_and_print(
        attack_target=run,
        attacks=attacks,
        seed=seed,
        folder=folder,
        with_reference=with_reference,
        strict=bool(names),
    )
    if not results:
        raise AttackError(f"no attack applies to the run in {run_folder}")
    if out is None:
        for result in results:
            track_result(result, RunFolder(run_folder))
    print_results(results)
    console.print(f"written to {folder}", markup=False)
    give_result({"folder": folder, "attacks": results_as_json(results, folder)})


def _print_list() -> None:
    from instahide_fl.attacks.registry import ATTACKS
    from instahide_fl.transcript.threat_model import THREAT_MODELS

    for attack in ATTACKS.values():
        console.print(f"[bold]{attack.name}[/bold]  {attack.summary}", highlight=False)
        needs = attack.needs_in_words()
        console.print(
            f"    needs {needs} ({attack.threat_model}); {attack.cost}; "
            f"{attack.source}",
            highlight=False,
            markup=False,
        )
    console.print("\nAdversaries (--threat-model):")
    for adversary in THREAT_MODELS.values():
        console.print(
            f"[bold]{adversary.name}[/bold]  {adversary.who}", highlight=False
        )
        knows = ", ".join(sorted(adversary.knows))
        console.print(f"    knows {knows}", highlight=False, markup=False)
    give_result(
        {
            "attacks": {
                attack.name: {
                    "summary": attack.summary,
                    "needs": attack.needs_in_words(),
                    "adversary": attack.threat_model,
                    "source": attack.source,
                }
                for attack in ATTACKS.values()
            },
            "adversaries": {
                adversary.name: {
                    "who": adversary.who,
                    "knows": sorted(adversary.knows),
                }
                for adversary in THREAT_MODELS.values()
            },
        }
    )
