"""What a report says in words. It never says that anything is safe."""

from __future__ import annotations

from collections.abc import Sequence

from instahide_fl.attacks.verdict import (
    FROM_WORST,
    LEAKS,
    LEAKS_TO_ADVERSARY,
    NO_LEAK,
    NO_VERDICT,
)
from instahide_fl.report.frames import Study
from instahide_fl.report.leakage import (
    Variant,
    variants,
    worst_leakage,
    worst_verdict,
)

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


def verdict_lines(study: Study) -> list[str]:
    """Say what was found, method by method, worst first."""
    every = variants(study)
    order = (*FROM_WORST, "")
    judged = {one.label: worst_verdict(one, study.attacks) for one in every}
    ordered = sorted(every, key=lambda one: order.index(judged[one.label]))
    lines = [
        f"{one.label}: {_SAYS[judged[one.label]]}{_how_much(study, one)}."
        for one in ordered
        if _is_known(one)
    ]
    return [*lines, *_unfinished(study), ONLY_TRIED]


def _is_known(variant: Variant) -> bool:
    return any(one.run is not None for one in variant.members)


def _how_much(study: Study, variant: Variant) -> str:
    parts = []
    leak = worst_leakage(variant, study.attacks, ordinary=False)
    if leak is not None:
        parts.append(
            f"{leak.source} as {leak.threat_model} reached SSIM "
            f"{leak.similarity.mean:.2f} on average and {leak.best:.2f} at best, where "
            f"a guess reaches {leak.baseline.mean:.2f}"
        )
    accuracy = variant.spread(study.runs, "final_accuracy")
    if accuracy is not None:
        parts.append(f"accuracy {accuracy.mean:.1%}")
    return f" ({'; '.join(parts)})" if parts else ""


def _unfinished(study: Study) -> Sequence[str]:
    left = sum(one.status != "finished" for one in study.members)
    if not left:
        return []
    return [
        f"{left} of {len(study.members)} runs did not finish; figures are of what is "
        f"there."
    ]
