"""The command `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from instahide_fl.cli.common import console, errors
from instahide_fl.cli.output_options import give_result
from instahide_fl.errors import ConfigError

if TYPE_CHECKING:
    from instahide_fl.encoding.encoder import MixingEncoder
    from instahide_fl.evaluation.finished_run import FinishedRun
    from instahide_fl.evaluation.run_evaluation import CleanEvaluation, EncodedSettings


def evaluate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    encodings: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Also classify K encodings per image."),
    ] = None,
    own_coefficient: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="X",
            help="Smallest coefficient of the image itself; default: the run's bound.",
        ),
    ] = None,
    average: Annotated[
        str, typer.Option(help="What is averaged: softmax or logits.")
    ] = "softmax",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the keys; default: the run's.")
    ] = None,
) -> None:
    """Evaluate a finished run again, on clean or on encoded test images."""
    from instahide_fl.evaluation.finished_run import open_finished_run
    from instahide_fl.evaluation.run_evaluation import (
        EncodedSettings,
        encoder_for_run,
        evaluate_clean,
    )
    from instahide_fl.run_folder import EVALUATION

    about_encodings = (
        own_coefficient is not None or average != "softmax" or seed is not None
    )
    if encodings is None and about_encodings:
        raise ConfigError(
            "--own-coefficient, --average and --seed are about encodings: give "
            "--encodings K too"
        )
    with console.status("opening the run"):
        run = open_finished_run(run_folder)
        # Before anything is computed: it finds the mistakes.
        encoder = encoder_for_run(run, own_coefficient) if encodings else None
        clean = evaluate_clean(run)
    console.print(f"accuracy {clean.accuracy:.1%}, loss {clean.loss:.4f}: clean images")
    _compare_with_summary(run.summary, clean.accuracy)
    _warn_of_chance(run, clean.accuracy)
    result: dict[str, Any] = {"clean": asdict(clean)}
    if encodings is not None and encoder is not None:
        key_seed = run.config.seed if seed is None else seed
        settings = EncodedSettings(encodings, average, key_seed)
        _evaluate_encodings(run_folder, run, clean, encoder, settings)
        result = run.folder.read_json(EVALUATION)
    give_result(result)


def _evaluate_encodings(
    run_folder: Path,
    run: FinishedRun,
    clean: CleanEvaluation,
    encoder: MixingEncoder,
    settings: EncodedSettings,
) -> None:
    """Classify encodings of the test images, write the result down and print it."""
    from instahide_fl.evaluation.run_evaluation import evaluate_encoded, save_evaluation
    from instahide_fl.progress import steps_bar
    from instahide_fl.run_folder import EVALUATION, EVALUATION_PICTURE, RunFolder
    from instahide_fl.tracking.tracked import log_results

    with steps_bar(console, "classifying encodings", transient=True) as advance:
        encoded = evaluate_encoded(run, encoder, settings, advance)
    save_evaluation(run, clean, encoder, settings, encoded)
    figures = {"clean_accuracy": clean.accuracy, "encoded_accuracy": encoded.accuracy}
    pictures = [run_folder / EVALUATION_PICTURE]
    log_results(RunFolder(run_folder), "evaluation", figures, pictures)
    _print_by_encodings(encoded.accuracy_by_encodings)
    console.print(
        f"accuracy {encoded.accuracy:.1%}, loss {encoded.loss:.4f}: average of "
        f"{settings.encodings} encodings of each image"
    )
    console.print(f"written to {run_folder}: {EVALUATION}, {EVALUATION_PICTURE}")


def _compare_with_summary(summary: dict[str, Any], accuracy: float) -> None:
    """Warn if the accuracy is not the one that the run recorded."""
    from instahide_fl.run_folder import SUMMARY

    recorded = summary.get("final_accuracy")
    if recorded != accuracy:
        errors.print(
            f"warning: {SUMMARY} says accuracy {recorded}, now it is {accuracy}: a few "
            f"images may differ by rounding on another machine or another version of "
            f"PyTorch; if it is more, files of the run were changed"
        )


def _warn_of_chance(run: FinishedRun, accuracy: float) -> None:
    """Warn of a network that has learned nothing."""
    from instahide_fl.evaluation.chance import ChanceLevel, chance_warning

    chance = ChanceLevel.of(run.dataset.test.targets)
    if not chance.is_beaten_by(accuracy):
        errors.print(chance_warning(accuracy, chance.bound, run.config), style="yellow")


def _print_by_encodings(accuracies: Sequence[float]) -> None:
    """Print some rows of the curve: 1, 2, 3, 5, 10, 20, 50, ..., and the last."""
    counts = {3, len(accuracies)}
    counts |= {step * 10**power for step in (1, 2, 5) for power in range(6)}
    table = Table("encodings", "accuracy")
    for count in sorted(counts & set(range(1, len(accuracies) + 1))):
        table.add_row(str(count), f"{accuracies[count - 1]:.1%}")
    console.print(table)
