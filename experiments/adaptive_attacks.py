"""What does an attacker gain who makes use of the settings of a defence?

    python experiments/adaptive_attacks.py --data hf:PATH-OF-CIFAR-10

For each defence and seed, it simulates one round of ten clients with one image each, as
the study of docs/results.md does, and inverts the gradients twice: unaware of the
defence and adapted to it. It writes audits/adaptive.json and the table of
docs/attacks/inverting_gradients.md. Cells that have a result are not computed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from recorded_runs import recorded_run
from result_pages import write_section
from rich.console import Console

from instahide_fl.attacks.inverting_gradients import InvertingGradients
from instahide_fl.audit.run_attacks import run_attack
from instahide_fl.config import Scalar
from instahide_fl.files import write_text
from instahide_fl.progress import steps_bar
from instahide_fl.transcript.threat_model import THREAT_MODELS

RESULTS = Path(__file__).parent / "audits" / "adaptive.json"
PAGE = Path(__file__).parents[1] / "docs" / "attacks" / "inverting_gradients.md"
SEEDS = (0, 1, 2)
ITERATIONS = 300

ALL: dict[str, Scalar] = {
    "data.augment": "none",
    "data.train-rows": "0:5000",
    "instahide.method": "none",
    "model.name": "strided-cnn",
    "model.normalization": "none",
    "model.width": 32,
    "partition.num-clients": 10,
    "record.rounds": "all",
    "record.truth": True,
    "train.batch-size": 1,
    "train.evaluate-every": 1,
    "train.rounds": 1,
}
DEFENSES: dict[str, dict[str, Scalar]] = {
    "pruning, 90%": {"defense.transforms": "prune", "defense.prune-share": 0.9},
    "pruning, 99%": {"defense.transforms": "prune", "defense.prune-share": 0.99},
    "scaled signs": {"defense.transforms": "sign"},
    "clipping and noise of 0.01 times the norm": {
        "defense.transforms": "clip, noise",
        "defense.noise-multiplier": 0.01,
    },
}
FORMS: dict[str, InvertingGradients] = {
    "unaware": InvertingGradients(iterations=ITERATIONS, adaptive=False),
    "adaptive": InvertingGradients(iterations=ITERATIONS),
}

Cell = dict[str, object]


def main() -> None:
    """Compute the cells that are missing, and write results and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="as data.dataset")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptive-attacks"))
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for defense in DEFENSES:
        cells = results.setdefault(defense, {})
        for form in FORMS:
            if form not in cells:
                cells[form] = _cell(
                    defense, form, arguments.data, arguments.out, console
                )
                write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    write_section(PAGE, _table(results), "adaptive")


def _cell(defense: str, form: str, data: str, out: Path, console: Console) -> Cell:
    """Attack the clients of all seeds in one form, and return the figures."""
    means, best, weights, images = [], [], [], 0
    for seed in SEEDS:
        folder = out / f"{list(DEFENSES).index(defense)}-{seed}"
        values = {**ALL, **DEFENSES[defense], "data.dataset": data, "seed": seed}
        run = recorded_run(folder, values)
        with steps_bar(console, f"{defense}, {form}, seed {seed}") as progress:
            result = run_attack(
                attack_target=run,
                attack=FORMS[form],
                adversary=THREAT_MODELS["honest-server"],
                seed=0,
                progress=progress,
                with_reference=False,
            )
        private = result.scores.private
        assert private is not None
        means.append(private.attack.sign_ssim.mean)
        best.append(private.attack.sign_ssim.best)
        images += result.scores.reconstructions
        weights.append(result.reconstruction.adaptation["total_variation"])
    return {
        "ssim": round(sum(means) / len(means), 3),
        "ssim_by_seed": [round(mean, 3) for mean in means],
        "best": round(max(best), 3),
        "total_variation": weights,
        "images": images,
        "seeds": list(SEEDS),
        "iterations": ITERATIONS,
    }


def _table(results: Mapping[str, Mapping[str, Cell]]) -> str:
    lines = [
        f"| defence | {' | '.join(FORMS)} | weights chosen |",
        "| --- |" + " --- |" * (len(FORMS) + 1),
    ]
    for defense in DEFENSES:
        cells = results.get(defense, {})
        if len(cells) < len(FORMS):
            continue
        figures = [
            f"{cells[form]['ssim']:.2f} ({cells[form]['best']:.2f})" for form in FORMS
        ]
        chosen = cells["adaptive"]["total_variation"]
        assert isinstance(chosen, list)
        weights = ", ".join(f"{weight:g}" for weight in sorted(set(chosen)))
        lines.append(f"| {defense} | {' | '.join(figures)} | {weights} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
