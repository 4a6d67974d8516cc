"""Tables of a study: methods, attacks, settings, and what did not work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from instahide_fl.audit.scoring.verdict import NO_VERDICT, worst
from instahide_fl.metrics.intervals import CONFIDENCE, Interval, clopper_pearson
from instahide_fl.report.data_table import (
    DataTable,
    count,
    mebibytes,
    percent,
    seconds,
    two_decimals,
)
from instahide_fl.report.leakage import ATTACK_KEYS, Spread, mean_interval
from instahide_fl.report.reference import Reference
from instahide_fl.report.results import Member
from instahide_fl.report.variants import NOT_TRAINED, Variant

NO_GUARANTEE = "no formal guarantee"
_TEXT_COLUMNS = frozenset(
    {"method", "audit", "attack", "adversary", "form", "control", "verdict"}
)
_FORMATS_OF_ATTACKS = {
    "images": count,
    "identified": percent,
    "identified by chance": lambda share: f"{share:.2%}",
    "of N": count,
}
RELATIVE = "relative accuracy"
_OPTIONAL_COLUMNS = frozenset({RELATIVE, "validation accuracy", "training"})
FAILED_REFERENCE = "attack failed on the undefended reference: says nothing"


def by_method(
    variants: Sequence[Variant], reference: Reference | None = None, note: str = ""
) -> DataTable:
    """Return one row a variant: accuracy, leakage, guarantee, cost.

    Args:
        variants: The variants of the study.
        reference: The method that accuracy is compared with; None compares with none.
        note: How the settings of the methods were chosen; may be empty.
    """
    rows = [_method_row(variant, reference) for variant in variants]
    absent = {
        name for name in _OPTIONAL_COLUMNS if all(row[name] is None for row in rows)
    }
    columns = [
        name for name in rows[0] if name.removesuffix(", deviation") not in absent
    ]
    return DataTable(
        name="methods",
        title="Accuracy, leakage, guarantee and cost",
        caption="Means over seeds, with standard deviations between seeds where there "
        "are several. Leakage is SSIM with private images of the attack that got most, "
        "of all adversaries, with its 95% interval over images and seeds; an attack "
        "that fails on the undefended reference does not count. Best baseline: the "
        "most similar of a guess, noise and images of others. Worst case: the "
        "best-recovered image of all seeds. Recognisable: share "
        f"of images with SSIM above 0.5 (a convention).{_relative_note(reference)}"
        f"{f' {note}' if note else ''}",
        frame=pd.DataFrame(rows, columns=columns),
        formats={
            "accuracy": percent,
            RELATIVE: percent,
            "validation accuracy": percent,
            "recognisable": percent,
            "leakage": two_decimals,
            "worst case": two_decimals,
            "images": count,
            "a guess": two_decimals,
            "best baseline": two_decimals,
            "a round takes": seconds,
            "sent up a round": mebibytes,
        },
        numeric=frozenset(columns)
        - {"method", "training", "worst attack", "guarantee", "verdict"},
        deviations={
            name: f"{name}, deviation"
            for name in ("accuracy", RELATIVE, "leakage")
            if name in columns
        },
        intervals={"leakage": ("leakage, low", "leakage, high")},
    )


def _relative_note(reference: Reference | None) -> str:
    if reference is None:
        return ""
    return f" Relative accuracy: as a share of the accuracy of {reference.method}."


def _method_row(variant: Variant, reference: Reference | None) -> dict[str, Any]:
    accuracy = variant.accuracy
    relative = reference.relative(variant) if reference else None
    leakage = variant.worst_leakage(ordinary=False)
    round_seconds = variant.spread("seconds_per_round")
    bytes_up = variant.spread("bytes_up_per_round")
    return {
        "method": variant.label,
        "runs": _finished(variant),
        **_with_deviation("accuracy", accuracy),
        **_with_deviation(RELATIVE, relative),
        **_training(variant),
        **_with_deviation("leakage", leakage.similarity if leakage else None),
        **_ends("leakage", leakage.interval if leakage else None),
        "images": leakage.images if leakage else None,
        "a guess": leakage.baseline.mean if leakage else None,
        "best baseline": leakage.best_baseline.mean if leakage else None,
        "worst case": leakage.best if leakage else None,
        "recognisable": leakage.share.mean if leakage else None,
        "worst attack": leakage.source if leakage else None,
        "guarantee": guarantee(variant.runs) if accuracy else None,
        "a round takes": round_seconds.mean if round_seconds else None,
        "sent up a round": bytes_up.mean if bytes_up else None,
        "verdict": variant.verdict or "not attacked",
    }


def _training(variant: Variant) -> dict[str, Any]:
    """Return the columns that only some studies have: validation, and chance."""
    validation, training = variant.spread("validation_accuracy"), None
    if not variant.is_ranked:
        num_runs = int(variant.runs["final_accuracy"].notna().sum())
        some = f" ({variant.num_at_chance} of {num_runs} runs)"
        training = NOT_TRAINED + (some if variant.num_at_chance < num_runs else "")
    return {
        "validation accuracy": validation.mean if validation else None,
        "training": training,
    }


def _finished(variant: Variant) -> str:
    """Return how many runs finished, "2 of 3", and how many failed."""
    states = [member.status for member in variant.members]
    failed = f", {states.count('failed')} failed" if "failed" in states else ""
    return f"{states.count('finished')} of {len(states)}{failed}"


def _with_deviation(name: str, spread: Spread | None) -> dict[str, float | None]:
    return {
        name: spread.mean if spread else None,
        f"{name}, deviation": spread.deviation if spread else None,
    }


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}, low": low, f"{name}, high": high}


def guarantee(runs: pd.DataFrame) -> str:
    """Return epsilon, delta and unit of the weakest run, or that there is none.

    Args:
        runs: The rows of `Study.runs` that belong to one variant.
    """
    if "epsilon" not in runs or runs["epsilon"].isna().any():
        return NO_GUARANTEE
    weakest = runs.loc[runs["epsilon"].astype(float).idxmax()]
    unit = weakest.get("privacy_unit")
    delta = weakest.get("delta")
    parts = [f"({float(weakest['epsilon']):.3g}"]
    parts.append(f", {float(delta):.1g})-DP" if delta else ")-DP")
    return "".join(parts) + (f" per {unit}" if unit else "")


def by_attack(variants: Sequence[Variant]) -> DataTable | None:
    """Return one row for each attack on each variant; None where nothing was tried."""
    rows = [
        _attack_row(variant, dict(zip(ATTACK_KEYS, key, strict=True)), attacks)
        for variant in variants
        if len(variant.attacks)
        for key, attacks in variant.attacks.groupby(ATTACK_KEYS, sort=False)
    ]
    if not rows:
        return None
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    intervals = {
        name.removesuffix(", low"): (name, name.replace(", low", ", high"))
        for name in columns
        if name.endswith(", low")
    }
    with_decimals = [name for name in columns if name not in {*_TEXT_COLUMNS, "seeds"}]
    return DataTable(
        name="attacks",
        title="Attacks, one by one",
        caption="SSIM in the better sign, mean over images and seeds with 95% "
        "intervals. Baselines: a guess (the mean of other images), noise of the same "
        "statistics, and images of others, matched in the same way. |x|: SSIM of "
        "absolute values of normalised pixels, for "
        "attacks that cannot tell signs; beside it the best baseline. Identified: "
        "share of true images that are the most similar of N, of which nobody trained "
        "on the others; beside it what knowing the class reaches. Labels: share of "
        "classes named, beside what chance names. Control: the undefended reference, "
        "the same attack on the same clients where nothing is hidden; one that fails "
        "there says nothing about a defence. Form: what the attack made of the "
        "defence's settings.",
        frame=pd.DataFrame(rows, columns=columns),
        formats={**dict.fromkeys(with_decimals, two_decimals), **_FORMATS_OF_ATTACKS},
        numeric=frozenset(columns) - _TEXT_COLUMNS,
        intervals=intervals,
    )


def _attack_row(
    variant: Variant, keys: Mapping[str, str], attacks: pd.DataFrame
) -> dict[str, Any]:
    def mean(column: str) -> float | None:
        values: list[float] = (
            list(attacks[column].dropna()) if column in attacks else []
        )
        return Spread.of(values).mean if values else None

    def with_interval(name: str, kind: str, figure: str) -> dict[str, float | None]:
        interval = mean_interval(attacks, figure, f"{kind}_images")
        return {name: mean(f"{figure}_mean"), **_ends(name, interval)}

    images = attacks.get("private_images", attacks["images"]).dropna()
    best = attacks.get("private_ssim_best", pd.Series(dtype=float)).dropna()
    return {
        "method": variant.label,
        "audit": keys["audit"] or None,
        "attack": keys["attack"],
        "adversary": keys["threat_model"],
        "form": _form(attacks),
        "seeds": len(attacks),
        "images": int(images.sum()),
        **with_interval("private", "private", "private_ssim"),
        "private, best": float(best.max()) if len(best) else None,
        "above 0.5": mean("private_share_above_0.5"),
        "a guess": mean("baseline_ssim"),
        "noise": mean("noise_ssim"),
        "other images": mean("other_images_ssim"),
        **with_interval("private |x|", "private", "private_folded_ssim"),
        "|x| by chance": mean("private_folded_baseline_ssim"),
        "identified": mean("identified"),
        **_ends("identified", _identified_interval(attacks)),
        "identified by chance": mean("identified_chance"),
        "of N": mean("identified_of"),
        **with_interval("encoding", "encoding", "encoding_ssim"),
        **with_interval("encoding |x|", "encoding", "encoding_folded_ssim"),
        "labels": mean("labels_overlap"),
        "labels by chance": mean("labels_chance"),
        "soft-label error": mean("soft_labels_error"),
        "control": _control(attacks),
        "verdict": _verdict(attacks),
    }


def _identified_interval(attacks: pd.DataFrame) -> Interval | None:
    """Return the exact interval of the share of identified images, of all seeds."""
    if "identified" not in attacks or attacks["identified"].isna().all():
        return None
    rows = attacks[attacks["identified"].notna()]
    hits = (rows["identified"] * rows["identified_images"] + 1e-9).astype(int)
    # The better of two distances was taken.
    confidence = 1 - (1 - CONFIDENCE) / 2
    return clopper_pearson(
        int(hits.sum()), int(rows["identified_images"].sum()), confidence
    )


def _form(attacks: pd.DataFrame) -> str | None:
    """Return how an attack met a defence; None if there was none, or it did not say."""
    forms = attacks["form"].unique() if "form" in attacks else []
    return "; ".join(form for form in forms if form) or None


def _control(attacks: pd.DataFrame) -> str:
    succeeds = [
        bool(value) for value in attacks["control_succeeds"] if value is not None
    ]
    if not succeeds:
        return "none"
    if all(succeeds):
        return "succeeds"
    return "differs by seed" if any(succeeds) else "fails"


def _verdict(attacks: pd.DataFrame) -> str:
    verdict = worst(attacks["verdict"])
    return FAILED_REFERENCE if verdict == NO_VERDICT else verdict


def diagnostics(variants: Sequence[Variant]) -> DataTable | None:
    """Return the diagnostics of attacks, as a mean over clients and seeds."""
    rows: list[tuple[str, str, str, str, float]] = []
    for variant in variants:
        for member in variant.members:
            for file in member.run.attack_files if member.run else ():
                key = variant.label, file.audit, file.data["attack"]
                figures = _numbers(file.data.get("diagnostics", {}))
                rows.extend((*key, name, value) for name, value in figures)
    if not rows:
        return None
    keys = ["method", "audit", "attack", "diagnostic"]
    frame = pd.DataFrame(rows, columns=[*keys, "value"])
    summary = frame.groupby(keys, sort=False)["value"].agg(["mean", "min", "max"])
    return DataTable(
        name="diagnostics",
        title="Stages of the attacks",
        caption="What attacks tell about how they went: mean, least and most over "
        "clients and seeds. Names are explained on each attack's page of the "
        "documentation.",
        frame=summary.reset_index(),
        formats=dict.fromkeys(("mean", "min", "max"), lambda value: f"{value:.4g}"),
        numeric=frozenset({"mean", "min", "max"}),
        folded=True,
    )


def _numbers(diagnostics: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return an attack's diagnostics, those of all its clients included."""
    parts = [diagnostics, *diagnostics.get("clients", [])]
    return [
        (name, float(value))
        for part in parts
        for name, value in part.items()
        if isinstance(value, int | float) and name not in ("round", "client")
    ]


def failures(members: Sequence[Member]) -> DataTable | None:
    """Return the runs that did not finish, with their reasons."""
    rows = [
        {
            "run": member.name,
            "state": member.status,
            "reason": member.reason or "not carried out yet",
        }
        for member in members
        if member.status != "finished"
    ]
    if not rows:
        return None
    return DataTable("failures", "Runs that did not finish", "", pd.DataFrame(rows))


def skipped_attacks(variants: Sequence[Variant]) -> DataTable | None:
    """Return the attacks that audits could not make, with their reasons."""
    rows = [
        (variant.label, skipped.audit, skipped.attack, skipped.reason)
        for variant in variants
        for member in variant.members
        for skipped in (member.run.skipped_attacks if member.run else ())
    ]
    if not rows:
        return None
    keys = ["method", "audit", "attack", "reason"]
    runs = pd.DataFrame(rows, columns=keys).groupby(keys, sort=False).size()
    return DataTable(
        name="left-out",
        title="Attacks that did not apply",
        caption="They say nothing about these methods, neither good nor bad.",
        frame=runs.reset_index(name="runs"),
        numeric=frozenset({"runs"}),
    )
