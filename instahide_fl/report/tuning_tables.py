"""How the settings of a study's methods were chosen: the trials, and what to know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from instahide_fl.report.data_table import DataTable, percent
from instahide_fl.report.results import Study
from instahide_fl.report.variants import variant_label
from instahide_fl.study.tuning import values_in_words

CHOSEN = "chosen"


def tuning_table(study: Study) -> DataTable | None:
    """Return one row a trial; None where nothing was tuned."""
    rows = [
        {
            "method": variant_label(variant["method"], variant["axes"]),
            "trial": trial["trial"],
            "settings": values_in_words(trial["settings"]),
            "validation accuracy": trial["validation_accuracy"],
            "outcome": _outcome(variant, trial),
        }
        for variant in study.tuned_variants
        for trial in variant["trials"]
    ]
    if not rows:
        return None
    return DataTable(
        name="tuning",
        title="Trials",
        caption="Each trial is a training of its own. The best on validation images "
        "gives the settings of all runs of its method.",
        frame=pd.DataFrame(rows),
        formats={"validation accuracy": percent},
        numeric=frozenset({"trial", "validation accuracy"}),
    )


def _outcome(variant: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    if trial["trial"] == variant["chosen_trial"]:
        return f"{CHOSEN}, at the edge" if variant["on_edge"] else CHOSEN
    return "" if trial["status"] == "finished" else str(trial["status"])


def choice_note(study: Study) -> str:
    """Say by which images settings were chosen; empty where nothing was tuned."""
    tuning = study.description.get("tuning")
    if not tuning:
        return ""
    counts = set(_num_trials(study).values())
    trials = f"{max(counts)} trials" if len(counts) == 1 else "trials, unequally many,"
    last = (
        "after the last round"
        if tuning["report"] == "final"
        else "after the round that was best on validation images"
    )
    return (
        f"Each method was tuned by {trials} with seed {tuning['seed']}, on validation "
        f"images: {tuning['validation_share']:.3g} of the training images, which no "
        f"run trains on. Nothing was chosen on test images. Accuracy is that {last}."
    )


def tuning_notes(study: Study) -> list[str]:
    """Return what to know when reading the trials, one sentence or two each."""
    if "tuning" not in study.description:
        return []
    return [
        choice_note(study),
        *unequal_notes(study),
        *_seed_notes(study),
        *_edge_notes(study.tuned_variants),
        *_tie_notes(study.tuned_variants),
    ]


def unequal_notes(study: Study) -> list[str]:
    """Warn where methods had different numbers of trials."""
    counts = _num_trials(study)
    if not study.tuned_variants or len(set(counts.values())) == 1:
        return []
    listed = ", ".join(f"{method} {count}" for method, count in counts.items())
    return [
        f"Tuned unequally: methods had different numbers of trials, and who was tuned "
        f"more looks better. Trials: {listed}."
    ]


def _num_trials(study: Study) -> dict[str, int]:
    """Return the number of trials of each method, 0 for one that was not tuned."""
    return {
        **dict.fromkeys(study.description["methods"], 0),
        **{v["method"]: v["num_trials"] for v in study.tuned_variants},
    }


def _seed_notes(study: Study) -> list[str]:
    """Warn where a seed's test images are another seed's training images."""
    seed = study.description["tuning"]["seed"]
    reports = [member.run.data_report for member in study.members if member.run]
    is_divided = any(report and report.is_divided_by_seed for report in reports)
    if not is_divided or set(study.description["seeds"]) <= {seed}:
        return []
    return [
        f"The seed also divides training from test images: test images of seeds other "
        f"than {seed} are among those that the trials trained on and chose by."
    ]


def _edge_notes(variants: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for variant in variants:
        for name, edge in variant["on_edge"].items():
            label = variant_label(variant["method"], variant["axes"])
            value = variant["chosen_settings"][name]
            direction = "larger" if edge == "largest" else "smaller"
            yield (
                f"{label}: {name} = {value} is the {edge} value tried; a {direction} "
                f"one may be better."
            )


def _tie_notes(variants: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for variant in variants:
        reached = [trial["validation_accuracy"] for trial in variant["trials"]]
        if len(reached) > 1 and None not in reached and len(set(reached)) == 1:
            label = variant_label(variant["method"], variant["axes"])
            yield f"{label}: all trials reached the same, and the first was taken."
