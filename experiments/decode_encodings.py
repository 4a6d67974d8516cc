"""How much do encodings give away to an auditor, for T encodings of each image?

    python experiments/decode_encodings.py --data cifar10 --pool POOL
    python experiments/decode_encodings.py --data hf:PATH --pool POOL --only mixup

Encodes the first n training images T times, attacks them as `instahide-fl attack`
does, and writes the tables in docs/attacks/. POOL is a folder made by `instahide-fl
pool build`, or `photos`. Cells that have a result are not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from encoded_clients import encode_client
from result_pages import write_section
from rich.console import Console

from instahide_fl.attacks.base import ignore_progress
from instahide_fl.attacks.registry import build_attack
from instahide_fl.config import Scalar
from instahide_fl.errors import AttackError
from instahide_fl.files import write_text
from instahide_fl.rng import stream

HERE = Path(__file__).parent
RESULTS = HERE / "audits" / "decoding.json"
PAGES = HERE.parent / "docs" / "attacks"

MIXUP_INSIDE: dict[str, Scalar] = {
    "instahide.method": "mixup",
    "instahide.scope": "inside",
    "instahide.num-mixed": 4,
}
MIXUP_CROSS: dict[str, Scalar] = {
    "instahide.method": "mixup",
    "instahide.scope": "cross",
    "instahide.num-mixed": 6,
}
INSIDE = MIXUP_INSIDE | {"instahide.method": "instahide"}
CROSS = MIXUP_CROSS | {"instahide.method": "instahide"}
AUGMENTED: dict[str, Scalar] = {"data.augment": "crop-flip"}
AUGMENTED_IMAGES = 30  # fewer than without augmentation: registration is slow


@dataclass(frozen=True)
class Row:
    """One attack on one kind of encodings, for several T.

    Attributes:
        page: The page of docs/attacks that has the row, without its suffix.
        title: The row's title in the table.
        settings: The settings of the run.
        times: The numbers T of encodings of each image.
        images: n, the number of images.
        attack: The settings of the attack.
        name: The name of the attack; empty takes that of the page.
    """

    page: str
    title: str
    settings: Mapping[str, Scalar]
    times: tuple[int, ...]
    images: int = 100
    attack: tuple[tuple[str, Scalar], ...] = ()
    name: str = ""


def _decoding(
    title: str,
    settings: Mapping[str, Scalar],
    times: tuple[int, ...],
    **attack: Scalar,
) -> Row:
    return Row("decode_encodings", title, settings, times, attack=tuple(attack.items()))


def _augmented(
    title: str, settings: Mapping[str, Scalar], times: tuple[int, ...]
) -> Row:
    page = "registered_decoding"
    return Row(page, title, AUGMENTED | settings, times, AUGMENTED_IMAGES)


def _unregistered(
    title: str, settings: Mapping[str, Scalar], times: tuple[int, ...]
) -> Row:
    page, attack = "registered_decoding", "decode_encodings"
    title = f"{title}, not registered"
    settings = AUGMENTED | settings
    return Row(page, title, settings, times, AUGMENTED_IMAGES, name=attack)


ROWS = [
    _decoding("Mixup, inside k=4", MIXUP_INSIDE, (50, 20, 10, 5)),
    _decoding("Mixup, cross k=6", MIXUP_CROSS, (50, 20, 10, 5)),
    _decoding("InstaHide, inside k=4", INSIDE, (50, 20, 10, 5, 3, 2)),
    _decoding("InstaHide, cross k=6", CROSS, (50, 20, 10, 5)),
    _decoding(
        "InstaHide, cross k=6, public images known",
        CROSS,
        (50, 20, 10, 5, 3),
        public_part="known",
    ),
    _decoding(
        "InstaHide, cross k=6, folded least squares",
        CROSS,
        (50, 20, 10, 5),
        decoder="folded-least-squares",
    ),
    Row("mixup_recovery", "Mixup, inside k=4", MIXUP_INSIDE, (50, 20, 10, 5, 3, 2)),
    Row("mixup_recovery", "Mixup, cross k=6", MIXUP_CROSS, (50, 20, 10, 5)),
    Row("mixup_recovery", "InstaHide, inside k=4", INSIDE, (10,)),
    Row("mixup_recovery", "InstaHide, cross k=6", CROSS, (10,)),
    _augmented("Mixup, inside k=4", MIXUP_INSIDE, (20,)),
    _unregistered("Mixup, inside k=4", MIXUP_INSIDE, (20,)),
    _augmented("InstaHide, cross k=6", CROSS, (50, 20)),
    _unregistered("InstaHide, cross k=6", CROSS, (50,)),
    _augmented("InstaHide, inside k=4", INSIDE, (50,)),
    _unregistered("InstaHide, inside k=4", INSIDE, (50,)),
]


def main() -> None:
    """Compute the cells that are missing, and write results and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="as data.dataset")
    parser.add_argument("--pool", default="photos", help="as pool.source")
    parser.add_argument("--only", default="", help="rows whose title or page has this")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    common = {"data.dataset": arguments.data, "pool.source": arguments.pool}
    for row, times in _cells(arguments.only):
        cells = results.setdefault(row.page, {}).setdefault(row.title, {})
        if str(times) in cells:
            continue
        cells[str(times)] = _cell(row, times, common)
        console.print(f"{row.page}, {row.title}, T={times}: {cells[str(times)]}")
        write_text(RESULTS, json.dumps(results, indent=2, allow_nan=False) + "\n")
    for page, rows in results.items():
        _write_table(PAGES / f"{page}.md", rows)


def _cells(only: str) -> Iterator[tuple[Row, int]]:
    for row in ROWS:
        if only.lower() in f"{row.page} {row.title}".lower():
            for times in row.times:
                yield row, times


def _cell(row: Row, times: int, common: Mapping[str, Scalar]) -> dict[str, object]:
    """Encode, attack and score."""
    client = encode_client({**common, **row.settings}, row.images, times)
    attack = build_attack(row.name or row.page, dict(row.attack))
    start = time.perf_counter()
    try:
        reconstruction = attack.reconstruct(
            client.view(attack.threat_model),
            stream(0, "attack", row.page),
            ignore_progress,
        )
    except AttackError as error:
        return {"refused": str(error)}
    seconds = round(time.perf_counter() - start, 1)
    scored = client.score(reconstruction.recovered[0])
    return {"images": row.images, "seconds": seconds, **scored.to_json()}


def _write_table(page: Path, rows: Mapping[str, Mapping[str, Mapping]]) -> None:
    times = sorted({int(t) for cells in rows.values() for t in cells}, reverse=True)
    lines = ["| case | " + " | ".join(f"T={t}" for t in times) + " |"]
    lines.append("| --- |" + " --- |" * len(times))
    for title, cells in rows.items():
        texts = [_text(cells.get(str(t), {})) for t in times]
        lines.append(f"| {title} | " + " | ".join(texts) + " |")
    write_section(page, "\n".join(lines))


def _text(cell: Mapping[str, object]) -> str:
    if not cell:
        return ""
    if "refused" in cell:
        return "not enough information"
    text = f"{cell['ssim']:.3f}, {cell['psnr']:.1f}"
    if "registered" in cell:
        text += f" ({cell['flipped']:.3f}, {cell['registered']:.3f})"
    return text


if __name__ == "__main__":
    main()
