"""Collect the results of experiments, and write README table and curves from them.

    python experiments/results.py collect RUN_FOLDER ...       # into results/
    python experiments/results.py write       # tables of README and docs, curves

The provenance in a run folder says with which settings file and which `--set` options
the run was started.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from result_pages import write_section

from instahide_fl.config import Config
from instahide_fl.files import atomic_file, write_text
from instahide_fl.run_folder import EVALUATION, PROVENANCE, SUMMARY, RunFolder

HERE = Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
CURVES = HERE.parent / "docs" / "curves.png"
TRAINING = HERE.parent / "docs" / "training.md"
RECIPES = {
    "cifar10-recipe-plain": "plain",
    "cifar10-recipe-plain-sign-invariant": "plain, by absolute values",
    "cifar10-recipe-mixup": "Mixup inside, k = 4",
    "cifar10-recipe-inside": "InstaHide inside, k = 4",
    "cifar10-recipe-15min": "InstaHide cross, k = 4",
    "cifar10-recipe-k6": "InstaHide cross, k = 6",
    "cifar10-recipe-dirichlet": "InstaHide cross, k = 4, Dirichlet partition (0.5)",
    "cifar10-recipe-100-clients": "InstaHide cross, k = 4, 100 clients, 10 a round",
}
# Settings that do not change which experiment it is: where data lies, what a run takes.
NOT_COMPARED = ("data.dataset", "data.root", "pool.source", "resources.")

Row = dict[str, Any]


def collect(folders: Sequence[Path]) -> None:
    """Add runs to the result files of their experiments.

    A run with the same changes and the same seed as an earlier one replaces it.

    Args:
        folders: The folders of finished runs that were started with a settings file.
    """
    for path in folders:
        folder = RunFolder(path)
        if not folder.finished:
            raise SystemExit(f"{path} is not a finished run (no {SUMMARY})")
        name, row = describe(folder)
        target = RESULTS / f"{name}.json"
        rows: list[Row] = json.loads(target.read_text()) if target.exists() else []
        identity = ("set", "seed")
        rows = [old for old in rows if any(old[key] != row[key] for key in identity)]
        rows.append(row)
        rows.sort(key=lambda row: (row["set"], row["seed"]))
        write_text(target, json.dumps(rows, indent=1) + "\n")


def describe(folder: RunFolder) -> tuple[str, Row]:
    """Return the name of a run's experiment, and the row of its results."""
    provenance, summary = folder.read_json(PROVENANCE), folder.read_json(SUMMARY)
    words = shlex.split(provenance["command"])
    configs = [Path(word) for word in words if word.endswith(".toml")]
    if len(configs) != 1:
        raise SystemExit(
            f"{folder.path} was not started with a settings file, of which it could be "
            f"a result: its command was {provenance['command']!r}"
        )
    (config,) = configs
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    changes = [change for change in changes if not change.startswith(NOT_COMPARED)]
    curve = [
        [row["round"], row["test_accuracy"]]
        for row in folder.metrics()
        if row["test_accuracy"] is not None
    ]
    gpus, versions = provenance["gpus"], provenance["versions"]
    hardware = gpus[0] if gpus else f"{os.cpu_count()} cores"
    if provenance["engine"] == "inline":
        hardware = "1 core"
    row: Row = {
        "set": sorted(changes),
        "seed": provenance["seed"],
        "accuracy": summary["final_accuracy"],
        "trained": summary["trained"],
        "rounds": summary["rounds"],
        "epochs_per_round": epochs_per_round(folder.config(), provenance["clients"]),
        "encoded": encoded_accuracy(folder),
        "seconds": round(summary["seconds"]),
        "hardware": hardware,
        "versions": {name: versions[name] for name in ("torch", "flwr", "ray")},
        "curve": curve,
    }
    return config.stem, row


def epochs_per_round(config: Config, images: Mapping[str, int]) -> float:
    """Return the share of all training images that a round uses, on average.

    Args:
        config: The run's settings.
        images: The number of images of each client.
    """
    share = (config.train.clients_per_round or len(images)) / len(images)
    if config.train.mode == "update":
        return share * config.train.local_epochs
    per_client = config.train.batch_size * config.train.local_batches
    used = sum(min(count, per_client) for count in images.values())
    return share * used / sum(images.values())


def encoded_accuracy(folder: RunFolder) -> list[float]:
    """Return K and the accuracy on the average of K encodings, or an empty list."""
    encoded = folder.read_json(EVALUATION).get("encoded")
    return [encoded["encodings"], encoded["accuracy"]] if encoded else []


def table() -> str:
    """Return a Markdown table of all experiments, measured or not."""
    lines = [
        "| question | command | hardware | accuracy | minutes |",
        "|" + " --- |" * 5,
    ]
    for config in sorted(HERE.glob("*.toml")):
        if "[[methods]]" in config.read_text():
            continue  # a study, which has a report of its own
        question = config.read_text().splitlines()[0].removeprefix("# ")
        path = RESULTS / f"{config.stem}.json"
        rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
        if not rows:
            command = f"`experiments/{config.name}`"
            lines.append(f"| {question} | {command} | | not yet measured | |")
        for changes in sorted({tuple(row["set"]) for row in rows}):
            alike = [row for row in rows if tuple(row["set"]) == changes]
            lines.append(_line(question, config.name, changes, alike))
            question = ""
    return "\n".join(lines)


def _line(
    question: str, config: str, changes: Sequence[str], rows: Sequence[Row]
) -> str:
    percentages = [100 * row["accuracy"] for row in rows]
    accuracy = f"{mean(percentages):.1f}%"
    if len(percentages) > 1:
        accuracy += f" ± {stdev(percentages):.1f} ({len(percentages)} seeds)"
    if not all(row.get("trained", True) for row in rows):
        accuracy += ", not trained: chance"
    if any(still_rising(row["curve"]) for row in rows):
        accuracy += ", still rising"
    if encoded := rows[0].get("encoded"):
        accuracy += f"; {encoded[1]:.1%} on {encoded[0]} encodings"
    options = "".join(f" --set {change}" for change in changes)
    minutes = mean(row["seconds"] for row in rows) / 60
    command = f"`experiments/{config}{options}`"
    hardware = rows[0]["hardware"]
    return f"| {question} | {command} | {hardware} | {accuracy} | {minutes:.1f} |"


def still_rising(curve: Sequence[Sequence[float]], margin: float = 0.005) -> bool:
    """Tell whether the last quarter of a run still gained accuracy.

    Args:
        curve: Pairs of round and accuracy.
        margin: The smallest gain in accuracy that counts.
    """
    last_round, last_accuracy = curve[-1]
    before = [accuracy for number, accuracy in curve if number <= 0.75 * last_round]
    return bool(before) and last_accuracy - before[-1] > margin


def draw(names: Mapping[str, str]) -> None:
    """Draw accuracy over epochs.

    Args:
        names: The labels of the curves, by experiment.
    """
    figure = Figure(figsize=(6.4, 3.6), dpi=120)
    axes = figure.subplots()
    for name, label in names.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        row = json.loads(path.read_text())[0]
        rounds, accuracy = zip(*row["curve"], strict=True)
        epochs = [number * row["epochs_per_round"] for number in rounds]
        percentages = [100 * share for share in accuracy]
        axes.plot(epochs, percentages, marker=".", label=label)
    axes.set_xlabel("epochs: passes over all training images")
    axes.set_ylabel("accuracy on clean test images, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    with atomic_file(CURVES) as temporary:
        figure.savefig(temporary, format="png")


def recipe_table() -> str:
    """Return a Markdown table of what the short recipe reaches with each method."""
    plain = _first_row("cifar10-recipe-plain")
    lines = ["| method | accuracy | of plain | minutes |", "|" + " --- |" * 4]
    for name, label in RECIPES.items():
        row = _first_row(name)
        if row is None:
            lines.append(f"| {label} | not yet measured | | |")
            continue
        share = f"{row['accuracy'] / plain['accuracy']:.0%}" if plain else ""
        minutes = f"{row['seconds'] / 60:.0f}, {row['hardware']}"
        lines.append(f"| {label} | {row['accuracy']:.1%} | {share} | {minutes} |")
    return "\n".join(lines)


def _first_row(name: str) -> Row | None:
    path = RESULTS / f"{name}.json"
    rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
    return next((row for row in rows if not row["set"]), None)


def write() -> None:
    """Put the tables into README and docs, and draw the curves."""
    write_section(README, table())
    write_section(TRAINING, recipe_table(), "recipe")
    draw(
        {
            "cifar10-recipe-plain": "plain",
            "cifar10-recipe-inside": "InstaHide inside, k = 4",
            "cifar10-recipe-15min": "InstaHide cross, k = 4",
            "cifar10-cross-k4": "the same, as in the paper",
        }
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["collect"] and sys.argv[2:]:
        collect([Path(argument) for argument in sys.argv[2:]])
    elif sys.argv[1:] == ["write"]:
        write()
    else:
        raise SystemExit(__doc__)
