"""The commands `challenge make`, `attack`, `score` and `cost`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

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
from instahide_fl.cli.common import (
    BROKEN,
    DATASET_HELP,
    Assignments,
    console,
    print_rows,
    read_settings,
    refuse_existing,
)
from instahide_fl.errors import AttackError

# PyTorch is imported where it is used, so that --help is quick.
if TYPE_CHECKING:
    from instahide_fl.audit.attack_result import AttackResult
    from instahide_fl.challenge.cost import Measured
    from instahide_fl.challenge.score import ChallengeScore
    from instahide_fl.challenge.subject import ChallengeSubject
    from instahide_fl.config import Config

challenge_app = typer.Typer(
    help="Challenges in the format of the InstaHide Challenge.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a challenge.")]


@challenge_app.command("make")
def challenge_make(
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder.")],
    dataset: Annotated[str, typer.Option(help=DATASET_HELP)] = "mnist-5k",
    pool: Annotated[
        str, typer.Option(metavar="POOL", help="photos, or the folder of a pool.")
    ] = "photos",
    images: Annotated[int, typer.Option(min=1, help="n, private images.")] = 100,
    encodings: Annotated[int, typer.Option(min=1, help="T, of each image.")] = 50,
    num_mixed: Annotated[int, typer.Option(help="k, images in an encoding.")] = 6,
    method: Annotated[str, typer.Option(help="instahide, mixup or none.")] = (
        "instahide"
    ),
    scope: Annotated[str, typer.Option(help="cross or inside.")] = "cross",
    assignments: Assignments = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Repeatable, insecure keys. Without: operating system."),
    ] = None,
) -> None:
    """Make a challenge of test images: encodings for everybody, the truth apart."""
    from instahide_fl.challenge.make import make_challenge, write_challenge
    from instahide_fl.rng import operating_system_stream, stream

    refuse_existing(out)
    config = _challenge_config(dataset, pool, num_mixed, method, scope, assignments)
    # The seed is of keys and images alone: were it the configuration's too, it would
    # divide training from test images, and attackers could not know the former.
    rng = operating_system_stream() if seed is None else stream(seed, "challenge")
    with console.status("encoding"):
        made = make_challenge(config, images, encodings, rng)
        write_challenge(out, made)
    settings = made.published.settings
    print_rows(
        ("encodings", f"{images * encodings:,} of {images} images, in {out}"),
        ("method", f"{method}, {scope}, k = {settings.instahide.num_mixed}")
        if method != "none"
        else ("method", "none: the images themselves"),
        ("keys", settings.keys),
        ("keep to yourself", out / "truth"),
    )
    if method == "instahide":
        console.print(f"{BROKEN}: publish only what you would show.", style="yellow")


@challenge_app.command("attack")
def challenge_attack(
    folder: Folder,
    names: Names = None,
    threat_model: ThreatModelOption = None,
    assignments: SettingsOfAttacks = None,
    pool: Annotated[
        str | None,
        typer.Option(metavar="POOL", help="The public images, if you have them."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Images like the private ones, for attacks that train."),
    ] = None,
    seed: Seed = 0,
    control: ControlOption = True,
) -> None:
    """Attack a challenge, and write a decryption of every encoding."""
    from instahide_fl.audit.attack_result import RESULTS
    from instahide_fl.challenge.subject import attacks_on_encodings, open_challenge

    settings = settings_by_attack(assignments or [])
    usual = attacks_on_encodings(threat_model)
    with console.status("opening the challenge"):
        subject = open_challenge(folder, pool, dataset)
    chosen = attacks_to_run(names, threat_model, subject.config, settings, usual)
    for note in subject.notes:
        console.print(note, markup=False)
    place = folder / RESULTS
    results = run_attacks(subject, chosen, seed, control, place, strict=bool(names))
    if not results:
        raise AttackError(f"no attack applies to the challenge in {folder}")
    print_results(results)
    console.print(f"written to {place}", markup=False)
    _decrypt(subject, results, folder)


@challenge_app.command("score")
def challenge_score(
    folder: Folder,
    decryption: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: decryption.npy in the folder."),
    ] = None,
) -> None:
    """Score a decryption by the rules of the InstaHide Challenge."""
    from instahide_fl.challenge.files import read_decryption
    from instahide_fl.challenge.picture import save_score_picture
    from instahide_fl.challenge.score import (
        SCORE,
        default_decryption,
        made_by,
        save_score,
        score_challenge,
    )
    from instahide_fl.challenge.subject import open_truth

    truth, statistics = open_truth(folder)
    path = decryption or default_decryption(folder)
    images = read_decryption(path, tuple(truth.encodings.shape))
    with console.status("scoring"):
        score = score_challenge(images, truth, statistics)
    about = made_by(path)
    maker = " by ".join(about.values()) or path.name
    save_score(folder / SCORE, score, path)
    title = f"{maker}: Max_SSIM {score.submitted.max_ssim:.2f}"
    picture = (folder / SCORE).with_suffix(".png")
    save_score_picture(picture, images, truth, statistics, title)
    _print_score(score, maker)
    console.print(f"written to {folder / SCORE} and {picture}", markup=False)


@challenge_app.command("cost")
def challenge_cost(
    num_mixed: Annotated[int, typer.Option(min=1, help="k.")] = 6,
    num_private: Annotated[int, typer.Option(help="p, private of them.")] = 2,
    pool_size: Annotated[int, typer.Option(min=1, help="N.")] = 10_000_000,
    images: Annotated[int, typer.Option(min=1, help="n.")] = 100,
    encodings: Annotated[int, typer.Option(min=1, help="T, of each image.")] = 50,
    results: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Challenges or runs that were attacked."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Put the conjectured cost of decoding beside that of real attacks."""
    from instahide_fl.challenge.cost import (
        NO_PROTECTION,
        conjectured,
        costs_to_json,
        counted,
        measured_costs,
        published_costs,
    )

    guesses = conjectured(num_mixed, num_private, pool_size, images)
    counts = counted(images, encodings, num_private)
    costs = measured_costs(results) if results else published_costs()
    if as_json:
        found = costs_to_json(guesses, counts, costs)
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    console.print("Guessing, as the scheme's authors conjectured (nobody does it):")
    for one in guesses:
        console.print(f"    {one.what}: {one.formula}: {one.count}", markup=False)
    console.print(NO_PROTECTION, markup=False)
    console.print("What the work of attacks grows with:")
    for name, count in counts.items():
        console.print(f"    {name}: {count:,}", markup=False)
    _print_costs(costs)


def _challenge_config(
    dataset: str,
    pool: str,
    num_mixed: int,
    method: str,
    scope: str,
    assignments: Sequence[str] | None,
) -> Config:
    """Return the options as settings; `--set` comes on top of the defaults."""
    given = [
        f"data.dataset={json.dumps(dataset)}",
        f"pool.source={json.dumps(pool)}",
        f"instahide.num-mixed={num_mixed}",
        f"instahide.method={json.dumps(method)}",
        f"instahide.scope={json.dumps(scope)}",
        'data.augment="none"',
    ]
    return read_settings(None, [*given, *(assignments or [])], None)


def _decrypt(
    subject: ChallengeSubject, results: Sequence[AttackResult], folder: Path
) -> None:
    """Write the decryption of the most ordinary adversary that has one."""
    from instahide_fl.challenge.decryption import decryption_of
    from instahide_fl.challenge.files import DECRYPTION, write_decryption
    from instahide_fl.challenge.score import describe_decryption

    for result in sorted(results, key=_preference):
        view = subject.view(result.threat_model)
        images = decryption_of(result.reconstruction, view)
        if images is None:
            continue
        path, adversary = folder / DECRYPTION, result.threat_model.name
        write_decryption(path, images)
        describe_decryption(path, result.attack.name, adversary)
        console.print(f"{path} is by {result.attack.name} as {adversary}", markup=False)
        return
    console.print("no decryption: no attack recovered private images", markup=False)


def _preference(result: AttackResult) -> tuple[bool, bool]:
    """Sort what somebody ordinary can do first, and there what a challenge is for."""
    from instahide_fl.challenge.subject import EXPECTED

    return not result.threat_model.ordinary, result.attack.name not in EXPECTED


def _print_score(score: ChallengeScore, maker: str) -> None:
    from instahide_fl.challenge.leaderboard import HOW_TO_READ, LEADERBOARD

    table = Table(title=maker, caption="below the line: the published leaderboard")
    table.add_column("", overflow="fold")
    for heading in ("Max_SSIM", "Mean_SSIM", "Min_L2", "Mean_L2", "best", "> 0.5"):
        table.add_column(heading, justify="right")
    for name, one in score.rows().items():
        table.add_row(
            name,
            *(
                f"{value:.3f}"
                for value in (one.max_ssim, one.mean_ssim, one.min_l2, one.mean_l2)
            ),
            f"{one.best_ssim:.2f}",
            f"{one.share_above_half:.0%}",
        )
    table.add_section()
    for row in LEADERBOARD:
        figures = (row.max_ssim, row.mean_ssim, row.min_l2, row.mean_l2)
        table.add_row(row.attack, *(f"{value:.2f}" for value in figures))
    console.print(table)
    console.print(HOW_TO_READ, markup=False, highlight=False)


def _print_costs(costs: Sequence[Measured]) -> None:
    table = Table(title="What attacks cost")
    for heading in ("attack", "cost", "reached", "where"):
        table.add_column(heading, overflow="fold")
    for one in costs:
        table.add_row(one.attack, one.cost, one.reached, one.where)
    console.print(table)
