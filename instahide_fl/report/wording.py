"""What a report says in words. It never says that anything is safe."""

from __future__ import annotations

from collections.abc import Sequence

from instahide_fl.audit.scoring.verdict import (
    FROM_WORST,
    LEAKS,
    LEAKS_TO_ADVERSARY,
    NO_LEAK,
    NO_VERDICT,
    NOT_SCORED,
)
from instahide_fl.report.leakage import Leakage
from instahide_fl.report.results import Member
from instahide_fl.report.variants import Variant

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
VERDICTS_IN_WORDS = {
    LEAKS: "leaks private data to an adversary that every federation has",
    LEAKS_TO_ADVERSARY: "leaks private data to an adversary with more power or "
    "knowledge than a server that follows the protocol",
    NO_VERDICT: "cannot be judged: an attack failed on the undefended reference too, "
    "which says nothing",
    NOT_SCORED: "was attacked, but nobody knows the truth that would tell what leaked",
    NO_LEAK: "no leak was found by the attacks tried, which is not a proof",
    "": "was not attacked, so nothing is known about what it leaks",
}


def verdict_lines(
    variants: Sequence[Variant], warnings: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Say what the attacks showed, method by method, worst first.

    Methods that learned nothing are not ranked: they come after all others.

    Args:
        variants: The variants of the study.
        warnings: What else concerns all methods.

    Returns:
        The method, or nothing for what concerns all, and a text.
    """
    order = (*FROM_WORST, "")
    # A method at chance has no place in the order: it is listed behind the others.
    ordered = sorted(
        variants,
        key=lambda variant: (not variant.is_ranked, order.index(variant.verdict)),
    )
    lines = [
        (
            variant.label,
            f"{VERDICTS_IN_WORDS[variant.verdict]}{_leaking_attacks(variant)}."
            f"{_worst_scores(variant)}",
        )
        for variant in ordered
        if variant.has_runs
    ]
    members = [member for variant in variants for member in variant.members]
    notes = [*_unfinished(members), *_unequal(variants), *warnings, ONLY_TRIED]
    return [*lines, *(("", note) for note in notes)]


def _leaking_attacks(variant: Variant) -> str:
    """Name the attacks that gave the verdict, where it is a leak."""
    if variant.verdict not in (LEAKS, LEAKS_TO_ADVERSARY):
        return ""
    attacks = variant.attacks
    names = dict.fromkeys(attacks[attacks["verdict"] == variant.verdict]["attack"])
    return f", by {', '.join(names)}"


def _worst_scores(variant: Variant) -> str:
    """Say what the worst attacks reached, and how accurate the method is."""
    ordinary = variant.worst_leakage(ordinary=True)
    worst = variant.worst_leakage(ordinary=False)
    sentences = []
    if ordinary is not None:
        sentences.append(f" Images: {_reached(ordinary)}.")
    if worst is not None and worst != ordinary:
        sentences.append(f" With more power or knowledge: {_reached(worst)}.")
    if not variant.is_ranked:
        sentences.append(f" {_not_trained(variant)}")
    elif variant.accuracy is not None:
        sentences.append(f" Accuracy {variant.accuracy.mean:.1%}.")
    return "".join(sentences)


def _not_trained(variant: Variant) -> str:
    """Say that a method is at chance, and what that means for its figures."""
    accuracy, bound = variant.accuracy, variant.spread("chance_bound")
    assert accuracy is not None
    assert bound is not None
    num_runs = accuracy.count
    some = f" in {variant.num_at_chance} of {num_runs} runs"
    return (
        f"Not trained{some if variant.num_at_chance < num_runs else ''}: accuracy "
        f"{accuracy.mean:.1%}, chance reaches {bound.mean:.1%}. The network has "
        f"learned nothing, so what the method costs in accuracy is not known, attacks "
        f"on trained parameters met a network that had learned nothing, and it is not "
        f"ranked."
    )


def _reached(leakage: Leakage) -> str:
    source = ", ".join(filter(None, [leakage.audit, leakage.threat_model]))
    interval = ""
    if leakage.interval is not None:
        low, high = leakage.interval
        interval = f" [{low:.2f}, {high:.2f}]"
    return (
        f"{leakage.attack} ({source}) reached SSIM {leakage.similarity.mean:.2f}"
        f"{interval} on average of {leakage.images:,} images, {leakage.best:.2f} at "
        f"best; a guess reaches {leakage.baseline.mean:.2f}, the best baseline "
        f"{leakage.best_baseline.mean:.2f}"
    )


def _unfinished(members: Sequence[Member]) -> Sequence[str]:
    """Warn where runs did not finish."""
    unfinished = sum(member.status != "finished" for member in members)
    if not unfinished:
        return []
    return [
        f"{unfinished} of {len(members)} runs did not finish; figures are of what is "
        f"there."
    ]


def _unequal(variants: Sequence[Variant]) -> Sequence[str]:
    """Warn where methods were not attacked by the same attacks."""
    if all(variant.attacks.empty for variant in variants):
        return []
    tried = {
        variant.label: set(variant.attacks[["audit", "attack"]].itertuples(index=False))
        for variant in variants
        if variant.has_runs
    }
    by_any = set().union(*tried.values())
    fewer = [label for label, attacks in tried.items() if attacks != by_any]
    if not fewer:
        return []
    return [
        f"Not all were attacked in the same ways, and who was attacked less looks "
        f"better: compare them attack by attack. Fewer attacks on: {'; '.join(fewer)}."
    ]
