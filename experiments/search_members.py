"""How well are the private images in encodings told from images that nobody trained on?

    python experiments/search_members.py --data hf:PATH-OF-CIFAR-10 --pool PATH-OF-POOL

It simulates one client for each method, scope and k, asks about its images and 9,999
test images, and writes the table of docs/attacks/membership_encodings.md. Cells that
have a result are not computed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recorded_runs import recorded_run
from result_pages import write_section
from rich.console import Console

from instahide_fl.attacks.registry import build_attack
from instahide_fl.audit.attack_result import save_result
from instahide_fl.audit.pictures import save_attack_pictures
from instahide_fl.audit.run_attacks import run_attack
from instahide_fl.config import Scalar
from instahide_fl.files import write_text
from instahide_fl.progress import steps_bar
from instahide_fl.transcript.threat_model import THREAT_MODELS

RESULTS = Path(__file__).parent / "audits" / "membership_encodings.json"
PAGE = Path(__file__).parents[1] / "docs" / "attacks" / "membership_encodings.md"

ALL: dict[str, Scalar] = {
    "model.name": "mlp",
    "partition.num-clients": 1,
    "record.truth": True,
}


@dataclass(frozen=True)
class Cell:
    """One client whose encodings are searched.

    Attributes:
        method: "instahide" or "mixup".
        scope: "cross" or "inside".
        num_mixed: k, the number of images in an encoding.
        augment: "none" or "crop-flip".
        images: The number of private images, each of which is the first in one encoding
            of each round.
        rounds: The number of rounds, all recorded.
    """

    method: str
    scope: str
    num_mixed: int
    augment: str = "none"
    images: int = 200
    rounds: int = 1

    @property
    def folder(self) -> str:
        """The name of the run folder."""
        return "-".join(str(value) for value in vars(self).values())


CELLS = [
    Cell("instahide", "cross", 6),
    Cell("instahide", "cross", 4),
    Cell("instahide", "inside", 4),
    Cell("mixup", "inside", 4),
    Cell("instahide", "cross", 6, rounds=5),
    Cell("instahide", "cross", 6, augment="crop-flip", images=50),
]


def main() -> None:
    """Compute the cells that are missing, and write results and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="as data.dataset")
    parser.add_argument("--pool", default="photos", help="as pool.source")
    parser.add_argument("--out", type=Path, default=Path("runs/search-members"))
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for cell in CELLS:
        if not any(_matches(row, cell) for row in results):
            row = _search(cell, arguments.out, arguments.data, arguments.pool, console)
            results.append(row)
            console.print(row, markup=False)
            write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    write_section(PAGE, _table(results))


def _matches(row: Mapping[str, Any], cell: Cell) -> bool:
    return all(row[name] == value for name, value in vars(cell).items())


def _search(
    cell: Cell, out: Path, data: str, pool: str, console: Console
) -> dict[str, Any]:
    """Simulate, attack, and return the figures that the table shows."""
    folder = out / cell.folder
    run = recorded_run(
        folder,
        {
            **ALL,
            "data.augment": cell.augment,
            "data.dataset": data,
            "data.train-rows": f"0:{cell.images}",
            "instahide.method": cell.method,
            "instahide.num-mixed": cell.num_mixed,
            "instahide.scope": cell.scope,
            "pool.source": pool,
            "record.rounds": f"1-{cell.rounds}",
            "train.batch-size": cell.images,
            "train.rounds": cell.rounds,
        },
    )
    attack = build_attack("membership_encodings", {})
    adversary = THREAT_MODELS[attack.threat_model]
    with steps_bar(console, cell.folder) as progress:
        result = run_attack(run, attack, adversary, 0, progress, with_reference=False)
    save_result(result, folder / "attacks")
    save_attack_pictures(result, folder / "attacks")
    scores = result.scores.membership
    assert scores is not None
    assert scores.identification is not None
    ranked, figures = scores.identification.decisive, scores.decided
    return {
        **vars(cell),
        "encodings": len(ranked.choices),
        "candidates": ranked.size,
        "top1": round(ranked.top(1), 3),
        "top1_interval": [round(end, 3) for end in ranked.interval(1)],
        "top10": round(ranked.top(10), 3),
        "auc": round(figures["auc"], 3),
        "auc_interval": [round(end, 3) for end in figures["auc_interval"]],
        "tpr_at_fpr": {
            rate: round(share, 3) for rate, share in figures["tpr_at_fpr"].items()
        },
        "members": figures["members"],
        "seconds": round(result.seconds, 1),
        "verdict": result.verdict,
    }


def _table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| encodings | crops, flips | encodings | top-1 | top-10 | AUC | TPR at 0.1% "
        "| TPR at 1% | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results:
        low, high = row["top1_interval"]
        cells = [
            f"{row['method']} {row['scope']}, k={row['num_mixed']}",
            "yes" if row["augment"] != "none" else "no",
            f"{row['encodings']} ({row['rounds']} of each image)"
            if row["rounds"] > 1
            else str(row["encodings"]),
            f"{row['top1']:.2f} [{low:.2f}, {high:.2f}]",
            f"{row['top10']:.2f}",
            f"{row['auc']:.3f}",
            f"{row['tpr_at_fpr']['0.001']:.2f}",
            f"{row['tpr_at_fpr']['0.01']:.2f}",
            f"{row['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
