"""Who was trained on: the table and the ROC curves of attacks on membership."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from instahide_fl.audit.membership_picture import draw_roc, finish_roc_axes
from instahide_fl.report.attack_rows import AttackFile, attack_title
from instahide_fl.report.data_table import DataTable, percent
from instahide_fl.report.drawing import FAINT, Drawing, legend_below, panels
from instahide_fl.report.leakage import ATTACK_KEYS, Spread
from instahide_fl.report.study_figures import colour_of, line_of
from instahide_fl.report.variants import Variant

AUC = "membership_auc"
TEXT_COLUMNS = frozenset({"method", "attack", "adversary", "AUC, 95% interval"})


@dataclass(frozen=True)
class _Curve:
    """The ROC curve of one run."""

    variant: Variant
    figures: Mapping[str, Any]


def membership_table(variants: Sequence[Variant]) -> DataTable | None:
    """Return one row for each attack on membership and variant; None without any.

    Args:
        variants: The variants of the study.
    """
    rows = [
        _row(variant, dict(zip(ATTACK_KEYS, key, strict=True)), attacks)
        for variant in variants
        if AUC in variant.attacks
        for key, attacks in variant.attacks.dropna(subset=[AUC]).groupby(
            ATTACK_KEYS, sort=False
        )
    ]
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    return DataTable(
        name="membership",
        title="Who was trained on",
        caption="How well members of the training set are told from held-out images. "
        "AUC: 0.5 is chance; beside it the interval of the seed with the largest AUC. "
        "TPR: members found where 0.1% or 1% of the held-out images are taken for "
        "members. Means over seeds, with deviations where there are several. Read it "
        "beside the test accuracy of the attacked model: one that has learned nothing "
        "gives nobody away.",
        frame=frame,
        formats={
            "AUC": lambda value: f"{value:.3f}",
            "TPR at FPR 0.1%": percent,
            "TPR at FPR 1%": percent,
            "accuracy": percent,
        },
        numeric=frozenset(frame.columns) - TEXT_COLUMNS,
        deviations={
            name: f"{name}, deviation" for name in ("AUC", "TPR at FPR 1%", "accuracy")
        },
    )


def terminal_columns(table: DataTable) -> list[str]:
    """Return the columns that tell the rows of the table apart, or are figures."""
    varied = {
        name
        for name in ("attack", "adversary", "seeds", "held-out images")
        if table.frame[name].nunique() > 1
    }
    figures = ("method", "AUC", "AUC, 95% interval", "accuracy")
    return [
        name
        for name in table.columns
        if name in varied or name in figures or name.startswith("TPR")
    ]


def _row(
    variant: Variant, keys: Mapping[str, str], attacks: pd.DataFrame
) -> dict[str, Any]:
    worst = attacks.loc[attacks[AUC].idxmax()]
    low, high = worst["membership_auc_low"], worst["membership_auc_high"]
    return {
        "method": variant.marked_label,
        "attack": attack_title(keys["attack"], keys["audit"]),
        "adversary": keys["threat_model"],
        "seeds": len(attacks),
        **_spread("AUC", attacks, AUC),
        "AUC, 95% interval": f"{low:.3f}-{high:.3f}",
        "TPR at FPR 0.1%": attacks["membership_tpr_at_fpr_0.001"].mean(),
        **_spread("TPR at FPR 1%", attacks, "membership_tpr_at_fpr_0.01"),
        "held-out images": int(worst["membership_held_out"]),
        **_spread("accuracy", attacks, "membership_test_accuracy"),
    }


def _spread(name: str, attacks: pd.DataFrame, column: str) -> dict[str, float | None]:
    values = [float(value) for value in attacks[column].dropna()]
    if not values:
        return {name: None, f"{name}, deviation": None}
    spread = Spread.of(values)
    return {name: spread.mean, f"{name}, deviation": spread.deviation}


def roc_curves(variants: Sequence[Variant]) -> Drawing | None:
    """Draw ROC curves on logarithmic axes, a plot for each attack; None without any.

    Args:
        variants: The variants of the study.
    """
    by_attack: dict[str, list[_Curve]] = {}
    for variant in variants:
        for file in _attack_files(variant):
            figures = file.data["metrics"].get("membership", {})
            if "roc" in figures:
                title = f"{file.title}, {file.data['threat_model']}"
                by_attack.setdefault(title, []).append(_Curve(variant, figures))
    if not by_attack:
        return None
    with panels(len(by_attack), 4.8, 4.2) as (figure, cells):
        for axes, (title, curves) in zip(cells, by_attack.items(), strict=True):
            _draw(axes, curves)
            axes.set(title=title)
        legend_below(figure, cells)
    return Drawing(
        "membership-roc",
        "Members found against held-out images taken for members",
        "Both axes are logarithmic: the left edge shows whether an adversary can be "
        "sure of anybody. One line a seed. Dotted: chance.",
        f"ROC curves by method: {'; '.join(by_attack)}.",
        figure,
    )


def _attack_files(variant: Variant) -> Iterator[AttackFile]:
    for member in variant.members:
        if member.run is not None:
            yield from member.run.attack_files


def _draw(axes: Axes, curves: Sequence[_Curve]) -> None:
    for curve in curves:
        draw_roc(
            axes,
            curve.figures,
            color=colour_of(curve.variant),
            linestyle=line_of(curve.variant),
            linewidth=1.3,
            label=curve.variant.marked_label,
        )
    finish_roc_axes(axes, FAINT)
