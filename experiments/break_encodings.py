"""Break encodings of real photographs without any key: the table of carlini.md.

`python -m experiments.break_encodings --dataset hf:PATH --pool POOL` encodes 100 test
images of the data set, gives the encodings and soft labels to the attack `carlini`, and
scores what it returns. It writes experiments/audits/encodings.json, and the table of
docs/attacks/carlini.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from instahide_fl.attacks.carlini.attack import Carlini
from instahide_fl.audit.scoring.attack_scores import AttackScores
from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.audit.scoring.link_scores import score_client_links
from instahide_fl.audit.scoring.score_reconstruction import score_reconstruction
from instahide_fl.audit.scoring.verdict import verdict
from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset, augmentation_for, load_dataset
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.errors import AttackError
from instahide_fl.files import write_text
from instahide_fl.progress import steps_bar
from instahide_fl.rng import stream
from instahide_fl.transcript.threat_model import THREAT_MODELS
from instahide_fl.transcript.truth import ClientTruth, RecordingEncoder
from instahide_fl.transcript.view import AdversaryView, Observation
from instahide_fl.types import EncodedBatch, EncodingKey, PrivateSplit

RESULTS = Path(__file__).parent / "audits" / "encodings.json"
PAGE = Path(__file__).parents[1] / "docs" / "attacks" / "carlini.md"
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->"
CROSS = {"instahide.scope": "cross", "instahide.num-mixed": 6}
INSIDE = {"instahide.scope": "inside", "instahide.num-mixed": 4}
CASES: Mapping[str, tuple[Mapping[str, object], int, Mapping[str, object]]] = {
    # Settings of the run, encodings of each image, settings of the attack.
    "cross k=6, T=50": (CROSS, 50, {}),
    "cross k=6, T=50, pool not searched": (CROSS, 50, {"search_pool": False}),
    "cross k=6, T=20": (CROSS, 20, {}),
    "cross k=6, T=10": (CROSS, 10, {}),
    "cross k=6, T=5": (CROSS, 5, {}),
    "cross k=6, T=10, pool not searched": (CROSS, 10, {"search_pool": False}),
    "inside k=4, T=50": (INSIDE, 50, {}),
    "inside k=4, T=10": (INSIDE, 10, {}),
    "cross k=6, T=50, crop and flip": (
        {**CROSS, "data.augment": "crop-flip"},
        50,
        {},
    ),
}


def main() -> None:
    """Run the cases named on the command line, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="as data.dataset")
    parser.add_argument("--pool", required=True, help="folder of a built pool")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--stages", default="", help="folder to resume from")
    parser.add_argument("--case", action="append", help="of " + "; ".join(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(RESULTS), help="where to write")
    parser.add_argument("--estimate", action="store_true", help="n is not given")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    for case in arguments.case or CASES:
        row = run_case(case, arguments)
        print(case, json.dumps(row, indent=1), flush=True)
        found = json.loads(out.read_text()) if out.is_file() else {}
        found[case] = row
        write_text(out, json.dumps(found, indent=2) + "\n")
        if out == RESULTS:
            before, rest = PAGE.read_text().split(BEGIN)
            after = rest.split(END)[1]
            write_text(PAGE, before + BEGIN + table(found) + END + after)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as a table of a page, in the order of `CASES`."""
    lines = [
        "| encodings | pair AUC (in class) | purity | images found | links, before and "
        "after refinement | SSIM, best | above 0.5 | CPU minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        row = found.get(case)
        if row is None:
            continue
        if "refused" in row:
            lines.append(f"| {case} | {row['refused']} | | | | | | |")
            continue
        ssim = row["attack"]["ssim"]
        lines.append(
            f"| {case} | {row['pair_auc']:.2f} ({row['pair_auc_in_class']:.2f}) "
            f"| {row['cluster_purity']:.2f} | {row['images_found']:.0f} "
            f"| {row['link_accuracy_clustered']:.2f}, {row['link_accuracy']:.2f} "
            f"| {ssim['mean']:.3f}, {ssim['best']:.3f} "
            f"| {ssim['share_above_0.5']:.0%} "
            f"| {row['processor_seconds'] / 60:.1f} |"
        )
    return "\n".join(lines) + "\n"


def run_case(case: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Encode, attack and score."""
    changes, times, attack_settings = CASES[case]
    config = Config().with_values(
        {
            "data.dataset": arguments.dataset,
            "data.augment": "none",
            "pool.source": arguments.pool,
            **changes,
        }
    )
    dataset = load_dataset(config.data)
    pool = MixingPool.open(arguments.pool) if config.instahide.uses_pool else None
    view, truth = made_by_hand(config, dataset, pool, arguments.images, times)
    attack = Carlini(
        images=0 if arguments.estimate else arguments.images,
        stages=arguments.stages,
        **attack_settings,
    )
    start, processor = time.perf_counter(), time.process_time()
    with steps_bar(Console(stderr=True), case) as advance:
        try:
            found = attack.reconstruct(view, stream(arguments.seed, "attack"), advance)
        except AttackError as error:
            return {"refused": str(error).split(":")[0]}
    seconds = time.perf_counter() - start
    processor_seconds = time.process_time() - processor
    (recovered,) = found.recovered
    ground_truth = GroundTruth({(1, "0"): truth}, view.statistics, view.num_classes)
    scores = score_reconstruction(found, ground_truth, stream(0, "score"))
    return {
        "seconds": round(seconds),
        "processor_seconds": round(processor_seconds),
        "threads": torch.get_num_threads(),
        **_figures(scores),
        **recovered.diagnostics,
        **score_client_links(recovered.links, "0", ground_truth),
        "verdict": verdict(view.threat_model, scores, None),
    }


def _figures(scores: AttackScores) -> dict[str, Any]:
    assert scores.private is not None
    return {
        name: column.to_json()
        for name, column in (
            ("attack", scores.private.attack),
            ("no_information", scores.private.no_information),
            ("matched_noise", scores.private.matched_noise),
        )
    }


def made_by_hand(
    config: Config,
    dataset: ImageDataset,
    pool: MixingPool | None,
    images: int,
    times: int,
) -> tuple[AdversaryView, ClientTruth]:
    """Encode test images, shuffle, and return what a holder of encodings has."""
    rng = stream(config.seed, "victims")
    rows = torch.from_numpy(np.sort(rng.permutation(len(dataset.test))[:images]))
    split = PrivateSplit(
        dataset.test.images[rows],
        dataset.test.targets[rows],
        dataset.test.num_classes,
        dataset.train.statistics,
    )
    augmentation = augmentation_for(config.data, dataset.image_shape)
    recording = RecordingEncoder(build_encoder(config.instahide, pool, augmentation))
    for _ in range(times):
        recording.encode(torch.arange(images), split, rng)
    _shuffle(recording, rng)
    truth = recording.truth(1, "0", split)
    observation = Observation(
        round=1,
        client="0",
        num_examples=0,
        learning_rate_factor=1.0,
        kind="gradient",
        encodings=truth.encodings,
        soft_targets=truth.soft_targets,
    )
    view = AdversaryView(
        THREAT_MODELS["encodings-holder"],
        config,
        split.statistics,
        dataset.image_shape,
        dataset.test.num_classes,
        (observation,),
        (),
        pool,
    )
    return view, truth


def _shuffle(recording: RecordingEncoder, rng: np.random.Generator) -> None:
    """Bring all encodings into random order: theirs would tell the first image."""
    key = EncodingKey.concatenate(recording.keys)
    order = torch.from_numpy(rng.permutation(len(key)))
    encodings = torch.cat([batch.images for batch in recording.batches])[order]
    labels = torch.cat([batch.soft_targets for batch in recording.batches])[order]
    recording.keys[:] = [key.select(order)]
    recording.batches[:] = [EncodedBatch(encodings, labels)]


if __name__ == "__main__":
    main()
