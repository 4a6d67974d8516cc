"""Are the public images in encodings found in the pool? How much does the search cost?

    python experiments/search_pool.py --data hf:PATH-OF-CIFAR-10 --photos PATH

It cuts pools from a folder of photographs, simulates one client with 300 encodings for
each method, k and pool, searches the pool by every score, and writes the tables of
docs/attacks/pool_search.md. Cells that have a result are not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from recorded_runs import recorded_run
from result_pages import write_section
from rich.console import Console

from instahide_fl.attacks.base import ignore_progress
from instahide_fl.attacks.pool_search.attack import RANKED
from instahide_fl.attacks.pool_search.pool_ranking import (
    Comparison,
    correlation_embedding,
    rank_pool,
)
from instahide_fl.attacks.registry import build_attack
from instahide_fl.attacks.whitening import Whitening
from instahide_fl.audit.attack_result import save_result
from instahide_fl.audit.pictures import save_attack_pictures
from instahide_fl.audit.recorded_run import RecordedRun
from instahide_fl.audit.run_attacks import run_attack
from instahide_fl.audit.scoring.public_image_scores import ComponentScores
from instahide_fl.config import Scalar
from instahide_fl.data.pool import MixingPool
from instahide_fl.data.pool_build import build_pool
from instahide_fl.data.pool_patches import PoolBuildOptions
from instahide_fl.files import write_text
from instahide_fl.progress import BuildProgress, steps_bar
from instahide_fl.rng import stream
from instahide_fl.transcript.threat_model import THREAT_MODELS

RESULTS = Path(__file__).parent / "audits" / "pool_search.json"
PAGE = Path(__file__).parents[1] / "docs" / "attacks" / "pool_search.md"
CROPS = (1, 20)  # patches of each of 1,000 photographs: pools of 1,000 and 20,000
SIZES = (10_000, 100_000, 1_000_000)  # images repeated, for time and memory alone
ENCODINGS = 300

ALL: dict[str, Scalar] = {
    "data.augment": "none",
    "data.train-rows": f"0:{ENCODINGS}",
    "instahide.scope": "cross",
    "model.name": "mlp",
    "partition.num-clients": 1,
    "record.rounds": "1",
    "record.truth": True,
    "train.batch-size": ENCODINGS,
    "train.rounds": 1,
}


@dataclass(frozen=True)
class Cell:
    """One search.

    Attributes:
        method: "instahide" or "mixup".
        num_mixed: k, the number of images in an encoding.
        crops: The number of patches of each photograph in the pool.
        score: The setting `pool_search.score`.
    """

    method: str
    num_mixed: int
    crops: int
    score: str

    @property
    def folder(self) -> str:
        """The name of the run folder, which all scores share."""
        return f"{self.method}-k{self.num_mixed}-crops{self.crops}"


CELLS = [
    Cell(method, k, crops, "whitened")
    for crops in reversed(CROPS)
    for k in (6, 4)
    for method in ("instahide", "mixup")
]
CELLS += [Cell("instahide", 6, 20, "learned")]
CELLS += [Cell("instahide", k, 20, "whitened") for k in (3, 5)]


def main() -> None:
    """Compute the cells that are missing, and write results and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="as data.dataset")
    parser.add_argument("--photos", type=Path, required=True, help="folder")
    parser.add_argument("--out", type=Path, default=Path("runs/search-pool"))
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    searches = results.setdefault("searches", [])
    costs = results.setdefault("costs", [])
    for cell in CELLS:
        if any(_matches(row, cell) for row in searches):
            continue
        pool = _pool(arguments.photos, arguments.out, cell.crops, console)
        run = _record_run(arguments.out / cell.folder, cell, pool, arguments.data)
        row = _search(run, cell, arguments.out / cell.folder, console)
        searches.append(row)
        console.print(row, markup=False)
        write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    for size in SIZES:
        for score in ("correlation", "whitened"):
            if not any(row["pool"] == size and row["score"] == score for row in costs):
                pool = _pool(arguments.photos, arguments.out, 20, console)
                costs.append(_cost(pool, size, score, arguments.out))
                console.print(costs[-1], markup=False)
                write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    _write_tables(searches, costs)


def _matches(row: Mapping[str, object], cell: Cell) -> bool:
    return all(row[name] == value for name, value in vars(cell).items())


def _pool(photos: Path, out: Path, crops: int, console: Console) -> Path:
    folder = out / f"pool-{crops}"
    if not folder.exists():
        with BuildProgress(console) as progress:
            options = PoolBuildOptions(crops=crops, min_keypoints=0)
            build_pool(photos, folder, options, len(os.sched_getaffinity(0)), progress)
    return folder.resolve()


def _record_run(folder: Path, cell: Cell, pool: Path, data: str) -> RecordedRun:
    settings: dict[str, Scalar] = {
        **ALL,
        "data.dataset": data,
        "instahide.method": cell.method,
        "instahide.num-mixed": cell.num_mixed,
        "pool.source": str(pool),
    }
    return recorded_run(folder, settings)


def _search(
    run: RecordedRun, cell: Cell, folder: Path, console: Console
) -> dict[str, object]:
    """Search, and return the figures that the table shows."""
    attack = build_attack("pool_search", {"score": cell.score})
    adversary = THREAT_MODELS[attack.threat_model]
    with steps_bar(console, f"{cell.folder}, {cell.score}") as progress:
        result = run_attack(run, attack, adversary, 0, progress)
    save_result(result, folder / f"attacks-{cell.score}")
    save_attack_pictures(result, folder / f"attacks-{cell.score}")
    by_score = result.scores.components
    return {
        **vars(cell),
        "pool": by_score[cell.score].pool_size,
        "encodings": by_score[cell.score].encodings,
        "seconds": round(result.seconds, 1),
        "verdict": result.verdict,
        "found": {name: _figures(scores) for name, scores in by_score.items()},
    }


def _figures(scores: ComponentScores) -> dict[str, float]:
    public = scores.ranks.shape[1]
    return {
        "largest_in_top_10": round(scores.largest(), 3),
        "recall_at_number_in_encoding": round(scores.recall(public), 3),
        "recall_at_100": round(scores.recall(RANKED), 3),
    }


def _cost(pool: Path, size: int, score: str, out: Path) -> dict[str, object]:
    """Measure the search in a pool of repeated images that is mapped from disk."""
    folder = out / f"repeated-{size}"
    images = MixingPool.open(pool).images
    if not folder.exists():
        rows = torch.arange(size) % len(images)
        MixingPool.from_images(images[rows], "repeated").save(folder)
    repeated = MixingPool.open(folder)
    rng = stream(0, "cost of a search")
    drawn = rng.standard_normal((ENCODINGS, *repeated.image_shape), np.float32)
    encodings = torch.from_numpy(drawn)
    with _peak_memory() as peak:
        start = time.perf_counter(), time.process_time()
        if score == "correlation":
            embed = correlation_embedding(ignore_signs=True)
            comparison = Comparison(embed(encodings), embed)
        else:
            white = Whitening.of_pool(repeated, True, rng)
            comparison = Comparison(white.embed_encodings(encodings), white.embed)
        rank_pool(comparison, repeated, RANKED, ignore_progress)
        seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    return {
        "pool": size,
        "score": score,
        "encodings": ENCODINGS,
        "seconds": round(seconds[0], 1),
        "cpu_seconds": round(seconds[1], 1),
        "megabytes": round(peak[0] / 1e6),
    }


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Measure the additional memory, without pages that are mapped from files.

    Yields:
        A list of one number, the peak so far in bytes.
    """
    process, finished = psutil.Process(), threading.Event()

    def unshared() -> int:
        memory = process.memory_info()
        return int(memory.rss - memory.shared)

    before, peak = unshared(), [0]

    def watch() -> None:
        while not finished.wait(0.02):
            peak[0] = max(peak[0], unshared() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        finished.set()
        watcher.join()


def _write_tables(
    searches: list[dict[str, object]], costs: list[dict[str, object]]
) -> None:
    lines = [
        "| encodings | pool | score | largest in 10 | recall at k-2 | recall at 100 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    titles = set()
    for row in searches:
        for score, figures in row["found"].items():
            title = f"{row['method']}, k={row['num_mixed']} | {row['pool']:,} | {score}"
            # The plain correlation comes with every other score of the same cell.
            if title not in titles:
                titles.add(title)
                values = " | ".join(f"{value:.2f}" for value in figures.values())
                lines.append(f"| {title} | {values} |")
    write_section(PAGE, "\n".join(lines))
    lines = ["| pool | score | CPU seconds | memory, MB |", "| --- | --- | --- | --- |"]
    for row in costs:
        lines.append(
            f"| {row['pool']:,} | {row['score']} | {row['cpu_seconds']} | "
            f"{row['megabytes']} |"
        )
    write_section(PAGE, "\n".join(lines), "costs")


if __name__ == "__main__":
    main()
