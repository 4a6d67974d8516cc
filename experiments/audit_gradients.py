"""What can the server reconstruct? Every method, attacked from gradients.

    python experiments/audit_gradients.py --data cifar10
    python experiments/audit_gradients.py --data hf:PATH --out runs/audit-gradients

For each network and batch size, it simulates one round of every method with the same
images, attacks the gradients that the server saw, and writes the table of
docs/attacks/README.md. The run without any defence is the reference of the others: if
an attack fails on it, its row has no verdict. Cells that have a result are not computed
again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from recorded_runs import recorded_run
from result_pages import write_section
from rich.console import Console

from instahide_fl.attacks.registry import build_attack
from instahide_fl.audit.attack_result import AttackResult, save_result
from instahide_fl.audit.pictures import save_attack_pictures
from instahide_fl.audit.run_attacks import run_attack
from instahide_fl.audit.scoring.verdict import NO_LEAK
from instahide_fl.config import Scalar
from instahide_fl.files import write_text
from instahide_fl.metrics.scores import RECOGNISABLE
from instahide_fl.progress import steps_bar
from instahide_fl.transcript.threat_model import THREAT_MODELS

RESULTS = Path(__file__).parent / "audits" / "gradients.json"
PAGE = Path(__file__).parents[1] / "docs" / "attacks" / "README.md"
EXACT = 1e-4  # largest error of a pixel in an exact encoding, in normalised units

METHODS: dict[str, dict[str, Scalar]] = {
    "none": {"instahide.method": "none"},
    "Mixup, k=4": {"instahide.method": "mixup", "instahide.scope": "inside"},
    "InstaHide inside, k=4": {"instahide.scope": "inside"},
    "InstaHide cross, k=6": {"instahide.scope": "cross", "instahide.num-mixed": 6},
}
ALL: dict[str, Scalar] = {
    "data.augment": "none",
    "partition.num-clients": 1000,
    "record.rounds": "all",
    "record.truth": True,
    "train.rounds": 1,
    "train.clients-per-round": 5,
    "instahide.num-mixed": 4,
    "model.sign-invariant": False,  # the paper's network: encodings keep their signs
    # The gradients of a network that has hardly been trained leak most.
    "server.learning-rate": 1e-6,
}
CNN: dict[str, Scalar] = {"model.name": "strided-cnn", "model.width": 32}
SIX_IMAGES: dict[str, Scalar] = {
    "data.train-rows": "0:6",
    "partition.num-clients": 1,
    "partition.min-size": 6,
    "train.clients-per-round": 0,
    "train.batch-size": 1,
    "train.rounds": 60,
    "train.evaluate-every": 60,
}


@dataclass(frozen=True)
class Row:
    """One attack on one network and batch size, for every method.

    Attributes:
        title: The row's title in the table.
        attack: The name of the attack.
        run: The settings of the run.
        methods: The names of the METHODS to attack; empty takes all.
        settings: The settings of the attack.
    """

    title: str
    attack: str
    run: Mapping[str, Scalar]
    methods: tuple[str, ...] = ()
    settings: tuple[tuple[str, Scalar], ...] = ()


def _batch(size: int, clients: int = 5) -> dict[str, Scalar]:
    return {"train.batch-size": size, "train.clients-per-round": clients}


ROWS = [
    Row("hard labels, batch 1", "hard_labels", {**CNN, **_batch(1)}, ("none",)),
    Row("soft labels and coefficients, batch 1", "soft_labels", {**CNN, **_batch(1)}),
    Row(
        "first layer fully connected, batch 1",
        "first_layer",
        {"model.name": "mlp", **_batch(1)},
    ),
    Row(
        "first layer fully connected, batch 4",
        "first_layer",
        {"model.name": "mlp", **_batch(4)},
    ),
    Row(
        "imprint (malicious server), batch 32",
        "imprint",
        {"model.name": "mlp", "record.crafted": "imprint", **_batch(32)},
    ),
    Row("Inverting Gradients, batch 1", "inverting_gradients", {**CNN, **_batch(1)}),
    Row(
        "Inverting Gradients, batch 8",
        "inverting_gradients",
        {**CNN, **_batch(8, clients=2)},
    ),
    Row(
        "iDLG, LeNet with sigmoid, batch 1",
        "idlg",
        {
            "model.name": "strided-lenet",
            "model.activation": "sigmoid",
            **_batch(1, clients=3),
        },
    ),
    Row(
        "two steps: first layer, then decoding, 6 images x 10",
        "two_step",
        {"model.name": "mlp", **SIX_IMAGES},
        ("none", "Mixup, k=4", "InstaHide inside, k=4"),
    ),
    Row(
        "two steps: Inverting Gradients, then decoding, 6 images x 10",
        "two_step",
        {**CNN, **SIX_IMAGES},
        ("none", "InstaHide inside, k=4"),
    ),
    Row(
        "decoding of the true encodings, 6 images x 10",
        "decode_encodings",
        {**CNN, **SIX_IMAGES},
        ("none", "Mixup, k=4", "InstaHide inside, k=4"),
    ),
]


def main() -> None:
    """Compute the cells that are missing, and write results and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="as data.dataset")
    parser.add_argument("--out", type=Path, default=Path("runs/audit-gradients"))
    parser.add_argument("--only", default="", help="rows whose attack has this name")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for row in ROWS:
        if arguments.only in ("", row.attack):
            _audit(row, arguments.data, arguments.out, results, console)
    _write_table(results)


def _audit(
    row: Row,
    data: str,
    out: Path,
    results: dict[str, dict[str, object]],
    console: Console,
) -> None:
    """Fill one row of the table, cell by cell."""
    cells = results.setdefault(row.title, {})
    undefended: AttackResult | None = None
    for method in row.methods or tuple(METHODS):
        if method in cells:
            continue
        folder = out / _slug(row.title) / _slug(method)
        settings = {**ALL, **METHODS[method], **row.run, "data.dataset": data}
        run = recorded_run(folder, settings)
        attack = build_attack(row.attack, dict(row.settings))
        adversary = THREAT_MODELS[attack.threat_model]
        with steps_bar(console, f"{row.title}, {method}") as progress:
            result = run_attack(
                run, attack, adversary, 0, progress, with_reference=False
            )
        if undefended is not None:
            result = replace(
                result, undefended_scores=undefended.scores, why_no_reference=""
            )
        elif method == "none":
            undefended = result
        save_result(result, folder / "attacks")
        save_attack_pictures(result, folder / "attacks")
        cells[method] = _cell(result)
        console.print(f"{row.title}, {method}: {cells[method]}", markup=False)
        write_text(RESULTS, json.dumps(results, indent=2) + "\n")


def _cell(result: AttackResult) -> dict[str, object]:
    """Return the figures of a result that the table shows."""
    scores = result.scores
    cell: dict[str, object] = {
        "verdict": result.verdict,
        "seconds": round(result.seconds, 1),
        "images": scores.reconstructions,
    }
    for name, column in (("encoding", scores.encoding), ("private", scores.private)):
        if column is not None:
            ssim = column.attack.sign_ssim
            cell[name] = {"mean": round(ssim.mean, 3), "best": round(ssim.best, 3)}
    if scores.private is not None:
        chance = scores.private.no_information.sign_ssim.mean
        cell["no_information"] = round(chance, 3)
    if scores.hard_labels is not None:
        cell["labels_right"] = scores.hard_labels.overlap
    if scores.soft_labels is not None:
        cell["largest_label_error"] = float(scores.soft_labels.errors.max())
    if scores.encoding is not None:
        cell |= _exactness(result)
    return cell


def _exactness(result: AttackResult) -> dict[str, object]:
    """Count the encodings that came back with no pixel off by more than EXACT."""
    errors: list[float] = []
    ground_truth = result.attack_target.ground_truth
    assert ground_truth is not None
    for recovered in result.reconstruction.recovered:
        truth = ground_truth.truths[recovered.round, recovered.client]
        images = torch.empty(0)
        if recovered.images is not None:
            images = recovered.images.flatten(1)  # [M,C,H,W] -> [M,D]
        for encoding in truth.encodings.flatten(1):
            error = (images - encoding).abs()
            errors.append(float(error.amax(1).min()) if len(images) else float("inf"))
    exact = sum(error <= EXACT for error in errors)
    return {"exact": exact, "of": len(errors), "largest_error": max(errors)}


def _slug(text: str) -> str:
    dashed = "".join(c if c.isalnum() else "-" for c in text.lower())
    return "-".join(part for part in dashed.split("-") if part)


def _write_table(results: Mapping[str, Mapping[str, Mapping[str, object]]]) -> None:
    lines = ["| attack | " + " | ".join(METHODS) + " |"]
    lines.append("| --- |" + " --- |" * len(METHODS))
    for title, cells in results.items():
        texts = [_text(cells[method]) if method in cells else "" for method in METHODS]
        lines.append(f"| {title} | " + " | ".join(texts) + " |")
    write_section(PAGE, "\n".join(lines))


def _text(cell: Mapping[str, object]) -> str:
    parts = []
    if "labels_right" in cell:
        parts.append(f"{cell['labels_right']:.0%} right")
    if "largest_label_error" in cell:
        parts.append(f"largest error {cell['largest_label_error']:.0e}")
    if cell.get("exact"):
        parts.append(f"{cell['exact']} of {cell['of']} exact")
    for name in ("encoding", "private"):
        if isinstance(ssim := cell.get(name), dict):
            parts.append(f"{name} {ssim['mean']:.2f}")
    verdict = str(cell["verdict"])
    encoding = cell.get("encoding")
    recovered = isinstance(encoding, dict) and encoding["mean"] > RECOGNISABLE
    if recovered and verdict == NO_LEAK:
        # An encoding is no end: other attacks go on from there.
        verdict = "the encoding leaks, the images by the next step"
    return f"{', '.join(parts)}; {verdict.replace(' by this attack', '')}"


if __name__ == "__main__":
    main()
