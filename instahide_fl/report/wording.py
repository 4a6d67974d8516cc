"""What a report says in words. It never says that anything is safe."""

from __future__ import annotations

from collections.abc import Sequence

from instahide_fl.audit.scoring.verdict import (
    FROM_WORST,
    LEAKS,
    LEAKS_TO_ADVERSARY,
    NO_LEAK,
    NO_VERDICT,
)
from instahide_fl.report.leakage import (
    Leakage,
    Variant,
    variants,
    worst_leakage,
    worst_verdict,
)
from instahide_fl.report.results import Study

BROKEN = (
    "InstaHide is broken as an encryption scheme: Carlini et al. (\u201cIs Private "
    "Learning Possible with Instance Encoding?\u201d, IEEE S&P 2021) recover "
    "near-identical training images from its encodings. It is used here only as a "
    "research baseline and data-mixing regulariser; it gives no confidentiality "
    "guarantee, not even when only gradients are shared. For real protection use "
    "secure aggregation and/or differential privacy."
)
ONLY_TRIED = (
    "These are results of the attacks that were tried, with the settings given "
    "below, on this data. Another attack may get more. Similarity (SSIM) says how "
    "alike pictures are, not whether a person would be recognised."
)
_SAYS = {
    LEAKS: "leaks private data to an adversary that every federation has",
    LEAKS_TO_ADVERSARY: "leaks private data to an adversary with more power or "
    "knowledge than a server that follows the protocol",
    NO_VERDICT: "cannot be judged: an attack failed its control, which says nothing",
    NO_LEAK: "no leak was found by the attacks tried, which is not a proof",
    "": "was not attacked, so nothing is known about what it leaks",
}


def verdict_lines(study: Study) -> list[tuple[str, str]]:
    """Say what was found, method by method, worst first.

    Returns:
        The method, or nothing for what concerns all, and a text.
    """
    every = variants(study)
    order = (*FROM_WORST, "")
    judged = {one.label: worst_verdict(one, study.attacks) for one in every}
    ordered = sorted(every, key=lambda one: order.index(judged[one.label]))
    lines = [
        (
            one.label,
            f"{_SAYS[judged[one.label]]}{_by_whom(study, one)}.{_how_much(study, one)}",
        )
        for one in ordered
        if _is_known(one)
    ]
    notes = [*_unfinished(study), *_unequal(study), ONLY_TRIED]
    return [*lines, *(("", note) for note in notes)]


def _is_known(variant: Variant) -> bool:
    return any(one.run is not None for one in variant.members)


def _by_whom(study: Study, variant: Variant) -> str:
    """Name the attacks whose verdict it is, where they found a leak."""
    verdict = worst_verdict(variant, study.attacks)
    if verdict not in (LEAKS, LEAKS_TO_ADVERSARY):
        return ""
    rows = variant.rows(study.attacks)
    names = dict.fromkeys(rows[rows["verdict"] == verdict]["attack"])
    return f", by {', '.join(names)}"


def _how_much(study: Study, variant: Variant) -> str:
    ordinary = worst_leakage(variant, study.attacks, ordinary=True)
    every = worst_leakage(variant, study.attacks, ordinary=False)
    lines = []
    if ordinary is not None:
        lines.append(f" Images: {_reached(ordinary)}.")
    if every is not None and every != ordinary:
        lines.append(f" With more power or knowledge: {_reached(every)}.")
    accuracy = variant.spread(study.runs, "final_accuracy")
    if accuracy is not None:
        lines.append(f" Accuracy {accuracy.mean:.1%}.")
    return "".join(lines)


def _reached(leak: Leakage) -> str:
    return (
        f"{leak.attack} ({', '.join(filter(None, [leak.audit, leak.threat_model]))}) "
        f"reached SSIM {leak.similarity.mean:.2f} on average, {leak.best:.2f} at best; "
        f"a guess reaches {leak.baseline.mean:.2f}"
    )


def _unfinished(study: Study) -> Sequence[str]:
    left = sum(one.status != "finished" for one in study.members)
    if not left:
        return []
    return [
        f"{left} of {len(study.members)} runs did not finish; figures are of what is "
        f"there."
    ]


def _unequal(study: Study) -> Sequence[str]:
    """Warn where methods were not attacked by the same attacks."""
    if study.attacks.empty:
        return []
    tried = {
        one.label: set(
            one.rows(study.attacks)[["audit", "attack"]].itertuples(index=False)
        )
        for one in variants(study)
        if _is_known(one)
    }
    every = set().union(*tried.values())
    fewer = [label for label, own in tried.items() if own != every]
    if not fewer:
        return []
    return [
        f"Not all were attacked in the same ways, and who was attacked less looks "
        f"better: compare them attack by attack. Fewer attacks on: {'; '.join(fewer)}."
    ]
