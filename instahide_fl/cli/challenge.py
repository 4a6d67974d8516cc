"""The commands `challenge make`, `challenge attack` and `challenge score`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

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
from instahide_fl.cli.common import (
    BROKEN,
    DATASET_HELP,
    Assignments,
    console,
    print_rows,
    read_settings,
    refuse_existing,
)
from instahide_fl.cli.data_summary import print_data_summary
from instahide_fl.cli.output_options import ResultCommand, give_result
from instahide_fl.errors import AttackError

# PyTorch is imported where it is used, so that --help is quick.
if TYPE_CHECKING:
    from instahide_fl.audit.attack_result import AttackResult
    from instahide_fl.challenge.challenge_target import ChallengeTarget
    from instahide_fl.challenge.score import ChallengeScore
    from instahide_fl.config import Config

challenge_app = typer.Typer(
    help="Challenges in the format of the InstaHide Challenge.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a challenge.")]


@challenge_app.command("make", cls=ResultCommand)
def challenge_make(
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder.")],
    dataset: Annotated[str, typer.Option(help=DATASET_HELP)] = "mnist-5k",
    pool: Annotated[
        str, typer.Option(metavar="POOL", help="photos, or the folder of a pool.")
    ] = "photos",
    images: Annotated[int, typer.Option(min=1, help="Private images, n.")] = 100,
    encodings: Annotated[int, typer.Option(min=1, help="Encodings per image, T.")] = 50,
    num_mixed: Annotated[int, typer.Option(help="Images per encoding, k.")] = 6,
    method: Annotated[str, typer.Option(help="instahide, mixup or none.")] = (
        "instahide"
    ),
    scope: Annotated[str, typer.Option(help="cross or inside.")] = "cross",
    assignments: Assignments = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Draw repeatable, insecure keys. Default: secure keys."),
    ] = None,
) -> None:
    """Make a challenge from test images; originals and keys go into truth/."""
    from instahide_fl.challenge.make import make_challenge, write_challenge
    from instahide_fl.data.datasets import load_dataset
    from instahide_fl.rng import operating_system_stream, stream

    refuse_existing(out)
    config = _challenge_config(
        dataset=dataset,
        pool=pool,
        num_mixed=num_mixed,
        method=method,
        scope=scope,
        assignments=assignments,
    )
    # The seed is of keys and images alone: were it the configuration's too, it would
    # divide training from test images, and attackers could not know the former.
    rng = operating_system_stream() if seed is None else stream(seed, "challenge")
    loaded = load_dataset(config.data, config.seed)
    print_data_summary(loaded)
    with console.status("encoding"):
        made = make_challenge(config, images, encodings, rng, loaded)
        write_challenge(out, made)
    settings = made.published.settings
    encoding = "none: the images themselves"
    if method != "none":
        encoding = f"{method}, {scope}, k = {settings.instahide.num_mixed}"
    print_rows(
        ("encodings", f"{images * encodings:,} of {images} images, in {out}"),
        ("method", encoding),
        ("keys", settings.keys),
        ("keep to yourself", out / "truth"),
    )
    give_result({"folder": out, "encodings": images * encodings, "keys": settings.keys})
    if method == "instahide":
        console.print(f"{BROKEN}: publish only what you would show.", style="yellow")


@challenge_app.command("attack", cls=ResultCommand)
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
    with_reference: ReferenceOption = True,
) -> None:
    """Attack a challenge, and write a decryption of every encoding."""
    from instahide_fl.challenge.challenge_target import (
        attacks_on_encodings,
        open_challenge,
    )
    from instahide_fl.run_folder import ATTACK_RESULTS

    settings = settings_by_attack(assignments or [])
    usual = attacks_on_encodings(threat_model)
    with console.status("opening the challenge"):
        challenge = open_challenge(folder, pool, dataset)
    attacks = attacks_to_run(names, threat_model, challenge.config, settings, usual)
    for note in challenge.notes:
        console.print(note, markup=False)
    results = attack_and_print(
        attack_target=challenge,
        attacks=attacks,
        seed=seed,
        folder=folder / ATTACK_RESULTS,
        with_reference=with_reference,
        strict=bool(names),
    )
    if not results:
        raise AttackError(f"no attack applies to the challenge in {folder}")
    print_results(results)
    written = folder / ATTACK_RESULTS
    console.print(f"written to {written}", markup=False)
    _decrypt(challenge, results, folder)
    give_result({"folder": written, "attacks": results_as_json(results, written)})


@challenge_app.command("score", cls=ResultCommand)
def challenge_score(
    folder: Folder,
    decryption: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Decryption. Default: decryption.npy in the folder."
        ),
    ] = None,
) -> None:
    """Score a decryption by the rules of the InstaHide Challenge."""
    from instahide_fl.challenge.challenge_target import open_truth
    from instahide_fl.challenge.files import read_decryption
    from instahide_fl.challenge.picture import save_score_picture
    from instahide_fl.challenge.score import (
        SCORE,
        default_decryption,
        made_by,
        save_score,
        score_challenge,
    )

    truth, statistics = open_truth(folder)
    path = decryption or default_decryption(folder)
    images = read_decryption(path, tuple(truth.encodings.shape))
    with console.status("scoring"):
        score = score_challenge(images, truth, statistics)
    origin = made_by(path)
    maker = " by ".join(origin.values()) or path.name
    save_score(folder / SCORE, score, path)
    title = f"{maker}: Max_SSIM {score.submitted.max_ssim:.2f}"
    picture = (folder / SCORE).with_suffix(".png")
    save_score_picture(picture, images, truth, statistics, title)
    _print_score(score, maker)
    console.print(f"written to {folder / SCORE} and {picture}", markup=False)
    give_result(json.loads((folder / SCORE).read_text()))


def _challenge_config(
    dataset: str,
    pool: str,
    num_mixed: int,
    method: str,
    scope: str,
    assignments: Sequence[str] | None,
) -> Config:
    """Return the options as settings; `--set` comes on top of the defaults."""
    options = [
        f"data.dataset={json.dumps(dataset)}",
        f"pool.source={json.dumps(pool)}",
        f"instahide.num-mixed={num_mixed}",
        f"instahide.method={json.dumps(method)}",
        f"instahide.scope={json.dumps(scope)}",
        'data.augment="none"',
    ]
    return read_settings(None, [*options, *(assignments or [])], None)


def _decrypt(
    challenge: ChallengeTarget, results: Sequence[AttackResult], folder: Path
) -> None:
    """Write the decryption of the most ordinary adversary that has one."""
    from instahide_fl.challenge.decryption import decryption_of
    from instahide_fl.challenge.files import DECRYPTION, write_decryption
    from instahide_fl.challenge.score import describe_decryption

    for result in sorted(results, key=_preference):
        view = challenge.view(result.threat_model)
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
    """Sort results of ordinary adversaries first, then attacks made for challenges."""
    from instahide_fl.challenge.challenge_target import CHALLENGE_ATTACKS

    return not result.threat_model.ordinary, result.attack.name not in CHALLENGE_ATTACKS


def _print_score(score: ChallengeScore, maker: str) -> None:
    from instahide_fl.challenge.leaderboard import HOW_TO_READ, LEADERBOARD

    table = Table(title=maker, caption="below the line: the published leaderboard")
    table.add_column("", overflow="fold")
    for heading in ("Max_SSIM", "Mean_SSIM", "Min_L2", "Mean_L2", "best", "> 0.5"):
        table.add_column(heading, justify="right")
    for name, metrics in score.rows().items():
        cells = [
            f"{metrics.max_ssim:.3f}",
            f"{metrics.mean_ssim:.3f}",
            f"{metrics.min_l2:.3f}",
            f"{metrics.mean_l2:.3f}",
            f"{metrics.best_ssim:.2f}",
            f"{metrics.share_above_half:.0%}",
        ]
        table.add_row(name, *cells)
    table.add_section()
    for row in LEADERBOARD:
        figures = (row.max_ssim, row.mean_ssim, row.min_l2, row.mean_l2)
        table.add_row(row.attack, *(f"{value:.2f}" for value in figures))
    console.print(table)
    console.print(HOW_TO_READ, markup=False, highlight=False)
