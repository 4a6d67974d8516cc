"""Tables of a study: methods, attacks, settings, and what did not work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from instahide_fl.audit.scoring.verdict import NO_VERDICT, worst
from instahide_fl.report.data_table import (
    DataTable,
    mebibytes,
    percent,
    seconds,
    two_decimals,
)
from instahide_fl.report.leakage import (
    ATTACK_KEYS,
    Spread,
    Variant,
    variants,
    worst_leakage,
    worst_verdict,
)
from instahide_fl.report.results import Study

NO_GUARANTEE = "no formal guarantee"
_WORDS = frozenset({"method", "audit", "attack", "adversary", "control", "verdict"})
FAILED_CONTROL = "attack failed its control: says nothing"


def by_method(study: Study) -> DataTable:
    """Return one row a variant: accuracy, leakage, guarantee, cost."""
    rows = [_method_row(study, one) for one in variants(study)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return DataTable(
        "methods",
        "Accuracy, leakage, guarantee and cost",
        "Means over seeds, with standard deviations between seeds where there are "
        "several. Leakage is SSIM with private images of the attack that got most, "
        "of all adversaries; an attack that failed its control does not count. Worst "
        "case: the best-recovered image of all seeds. Recognisable: share of images "
        "with SSIM above 0.5 (a convention).",
        pd.DataFrame(rows, columns=columns),
        {
            "accuracy": percent,
            "recognisable": percent,
            "leakage": two_decimals,
            "worst case": two_decimals,
            "a guess": two_decimals,
            "a round takes": seconds,
            "sent up a round": mebibytes,
        },
        frozenset(columns) - {"method", "worst attack", "guarantee", "verdict"},
        {name: f"{name}, deviation" for name in ("accuracy", "leakage")},
    )


def _method_row(study: Study, variant: Variant) -> dict[str, Any]:
    runs = study.runs
    accuracy = variant.spread(runs, "final_accuracy")
    leak = worst_leakage(variant, study.attacks, ordinary=False)
    round_seconds = variant.spread(runs, "seconds_per_round")
    bytes_up = variant.spread(runs, "bytes_up_per_round")
    return {
        "method": variant.label,
        "runs": _finished(variant),
        **_with_deviation("accuracy", accuracy),
        **_with_deviation("leakage", leak.similarity if leak else None),
        "a guess": leak.baseline.mean if leak else None,
        "worst case": leak.best if leak else None,
        "recognisable": leak.share.mean if leak else None,
        "worst attack": leak.source if leak else None,
        "guarantee": guarantee(variant.rows(runs)) if accuracy else None,
        "a round takes": round_seconds.mean if round_seconds else None,
        "sent up a round": bytes_up.mean if bytes_up else None,
        "verdict": worst_verdict(variant, study.attacks) or "not attacked",
    }


def _finished(variant: Variant) -> str:
    """Return "2 of 3", and how many failed."""
    states = [one.status for one in variant.members]
    failed = f", {states.count('failed')} failed" if "failed" in states else ""
    return f"{states.count('finished')} of {len(states)}{failed}"


def _with_deviation(name: str, spread: Spread | None) -> dict[str, float | None]:
    return {
        name: spread.mean if spread else None,
        f"{name}, deviation": spread.deviation if spread else None,
    }


def guarantee(runs: pd.DataFrame) -> str:
    """Return epsilon, delta and unit of the weakest run, or that there is none."""
    if "epsilon" not in runs or runs["epsilon"].isna().any():
        return NO_GUARANTEE
    weakest = runs.loc[runs["epsilon"].astype(float).idxmax()]
    unit = weakest.get("privacy_unit")
    delta = weakest.get("delta")
    parts = [f"({float(weakest['epsilon']):.3g}"]
    parts.append(f", {float(delta):.1g})-DP" if delta else ")-DP")
    return "".join(parts) + (f" per {unit}" if unit else "")


def by_attack(study: Study) -> DataTable | None:
    """Return one row for each attack on each variant; None where nothing was tried."""
    rows = [
        _attack_row(one, dict(zip(ATTACK_KEYS, key, strict=True)), frame)
        for one in variants(study)
        if len(own := one.rows(study.attacks))
        for key, frame in own.groupby(ATTACK_KEYS, sort=False)
    ]
    if not rows:
        return None
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return DataTable(
        "attacks",
        "Attacks, one by one",
        "SSIM in the better sign, mean over images and seeds. A guess: the mean of "
        "other images. Labels: share of classes named, beside what chance names. "
        "Control: the same attack on the same clients where nothing is hidden; one "
        "that fails there says nothing about a defence.",
        pd.DataFrame(rows, columns=columns),
        {name: two_decimals for name in columns if name not in {*_WORDS, "seeds"}},
        frozenset(columns) - _WORDS,
    )


def _attack_row(
    variant: Variant, keys: Mapping[str, str], frame: pd.DataFrame
) -> dict[str, Any]:
    def mean(column: str) -> float | None:
        known: list[float] = list(frame[column].dropna()) if column in frame else []
        return Spread.of(known).mean if known else None

    best = frame.get("private_ssim_best", pd.Series(dtype=float)).dropna()
    return {
        "method": variant.label,
        "audit": keys["audit"] or None,
        "attack": keys["attack"],
        "adversary": keys["threat_model"],
        "seeds": len(frame),
        "private": mean("private_ssim_mean"),
        "private, best": float(best.max()) if len(best) else None,
        "above 0.5": mean("private_share_above_0.5"),
        "a guess": mean("baseline_ssim"),
        "encoding": mean("encoding_ssim_mean"),
        "labels": mean("labels_overlap"),
        "labels by chance": mean("labels_chance"),
        "soft-label error": mean("soft_labels_error"),
        "control": _control(frame),
        "verdict": _verdict(frame),
    }


def _control(frame: pd.DataFrame) -> str:
    known = [bool(one) for one in frame["control_succeeds"] if one is not None]
    if not known:
        return "none"
    return (
        "succeeds" if all(known) else "fails" if not any(known) else "differs by seed"
    )


def _verdict(frame: pd.DataFrame) -> str:
    found = worst(frame["verdict"])
    return FAILED_CONTROL if found == NO_VERDICT else found


def diagnostics(study: Study) -> DataTable | None:
    """Return what attacks say about their stages, mean over clients and seeds."""
    rows = []
    for one in variants(study):
        for member in one.members:
            for file in member.run.attack_files if member.run else ():
                for name, value in _told(file.data.get("diagnostics", {})):
                    key = one.label, file.audit, file.data["attack"], name
                    rows.append((*key, value))
    if not rows:
        return None
    keys = ["method", "audit", "attack", "diagnostic"]
    frame = pd.DataFrame(rows, columns=[*keys, "value"])
    found = frame.groupby(keys, sort=False)["value"].agg(["mean", "min", "max"])
    return DataTable(
        "diagnostics",
        "Stages of the attacks",
        "What attacks tell about how they went: mean, least and most over clients and "
        "seeds. Names are explained on each attack's page of the documentation.",
        found.reset_index(),
        dict.fromkeys(("mean", "min", "max"), lambda value: f"{value:.4g}"),
        frozenset({"mean", "min", "max"}),
        folded=True,
    )


def _told(diagnostics: Mapping[str, Any]) -> list[tuple[str, float]]:
    parts = [diagnostics, *diagnostics.get("clients", [])]
    return [
        (name, float(value))
        for part in parts
        for name, value in part.items()
        if isinstance(value, int | float) and name not in ("round", "client")
    ]


def failures(study: Study) -> DataTable | None:
    """Return the runs that did not finish, with their reasons."""
    rows = [
        {
            "run": one.name,
            "state": one.status,
            "reason": one.reason or "not carried out yet",
        }
        for one in study.members
        if one.status != "finished"
    ]
    return (
        DataTable("failures", "Runs that did not finish", "", pd.DataFrame(rows))
        if rows
        else None
    )


def left_out(study: Study) -> DataTable | None:
    """Return attacks that audits could not make, with their reasons."""
    rows = [
        (variant.label, one.audit, one.attack, one.reason)
        for variant in variants(study)
        for member in variant.members
        for one in (member.run.left_out if member.run else ())
    ]
    if not rows:
        return None
    keys = ["method", "audit", "attack", "reason"]
    counted = pd.DataFrame(rows, columns=keys).groupby(keys, sort=False).size()
    return DataTable(
        "left-out",
        "Attacks that did not apply",
        "They say nothing about these methods, neither good nor bad.",
        counted.reset_index(name="runs"),
        numeric=frozenset({"runs"}),
    )
