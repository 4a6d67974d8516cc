"""How much leaks as the same images are encoded again and again?

    python experiments/leakage_by_exposure.py --data hf:PATH-OF-CIFAR-10
    python experiments/leakage_by_exposure.py --pool PATH-OF-A-POOL --images 100

Encodes the same images T times, inside with k=4 and cross with k=6, decodes them as an
auditor who is given mapping and coefficients (`decode_encodings`), and writes the
figures and the curve of docs/exposure.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console

from instahide_fl.attacks.base import ignore_progress
from instahide_fl.attacks.decode_encodings import DecodeEncodings
from instahide_fl.audit.scoring.attack_scores import ImageSimilarity
from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.audit.scoring.score_reconstruction import score_reconstruction
from instahide_fl.config import Config
from instahide_fl.data.datasets import load_dataset
from instahide_fl.data.federated_data import load_pool
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.encoding.exposures import CountingEncoder, Exposures
from instahide_fl.files import atomic_file, write_text
from instahide_fl.rng import stream
from instahide_fl.transcript.threat_model import threat_model
from instahide_fl.transcript.truth import ClientTruth, RecordingEncoder
from instahide_fl.transcript.view import AdversaryView, KnownMapping, Observation
from instahide_fl.types import PrivateSplit

RESULTS = Path(__file__).parent / "audits" / "exposure.json"
PICTURE = Path(__file__).parents[1] / "docs" / "attacks" / "exposure.png"
ENCODINGS = (1, 2, 5, 10, 20, 50)  # T: encodings with the image as their first one
CASES = {"inside, k=4": ("inside", 4), "cross, k=6": ("cross", 6)}


def main() -> None:
    """Measure, and write figures and curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="as data.dataset")
    parser.add_argument("--pool", default="photos", help="as pool.source")
    parser.add_argument("--images", type=int, default=50, help="private ones")
    parser.add_argument("--seeds", type=int, default=3, help="each with other images")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    torch.set_num_threads(1)
    config = Config().with_values(
        {"data.dataset": arguments.data, "pool.source": arguments.pool}
    )
    rows: list[dict[str, Any]] = []
    for case, (scope, mixed) in CASES.items():
        values = {"instahide.scope": scope, "instahide.num-mixed": mixed}
        for times in ENCODINGS:
            for seed in range(arguments.seeds):
                measured = measure(
                    config.with_values({**values, "seed": seed}),
                    times,
                    arguments.images,
                )
                setting = {"case": case, "encodings": times, "seed": seed}
                rows.append({**setting, **measured})
                console.print(rows[-1], markup=False)
    results = {"images": arguments.images, "seeds": arguments.seeds, "rows": rows}
    write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    draw(rows)


def measure(config: Config, times: int, images: int) -> dict[str, Any]:
    """Encode images several times and decode the encodings.

    Args:
        config: The settings of data, pool and encoding, and the seed, which also
            chooses the images.
        times: T, the number of encodings of each image.
        images: n, the number of images.

    Returns:
        Exposures, and SSIM in the better sign of the decoded and of uninformed images.
    """
    train = load_dataset(config.data, 0).train
    rng = stream(config.seed, "exposure", times)
    chosen = stream(config.seed, "images").choice(len(train), images, replace=False)
    split = train.subset(torch.from_numpy(chosen))
    shape = split.images.shape
    pool = load_pool(config, (shape[1], shape[2], shape[3]))
    truth, exposures = encoded(config, split, pool, times, rng)
    start = time.perf_counter()
    attack = DecodeEncodings()
    view = auditor_view(config, split, truth)
    reconstruction = attack.reconstruct(view, rng, ignore_progress)
    seconds = time.perf_counter() - start
    ground_truth = GroundTruth({(1, "0"): truth}, split.statistics, split.num_classes)
    scores = score_reconstruction(reconstruction, ground_truth, rng)
    assert scores.private is not None
    return {
        **exposures.summary(0),
        **figures(scores.private),
        "seconds": round(seconds, 1),
    }


def encoded(
    config: Config,
    split: PrivateSplit,
    pool: MixingPool | None,
    times: int,
    rng: np.random.Generator,
) -> tuple[ClientTruth, Exposures]:
    """Encode every image several times, and count exposures."""
    rows = torch.arange(len(split))
    exposures = Exposures.zeros(len(split), config.instahide)
    inner = build_encoder(config.instahide, pool)
    encoder = RecordingEncoder(CountingEncoder(inner, exposures, rows))
    for _ in range(times):
        encoder.encode(rows, split, rng)
    return encoder.truth(1, "0", split), exposures


def auditor_view(
    config: Config, split: PrivateSplit, truth: ClientTruth
) -> AdversaryView:
    """Return the view of an auditor with encodings, mapping and coefficients."""
    mapping = KnownMapping(truth.key.private_index, truth.key.coefficients)
    observation = Observation(
        round=1,
        client="0",
        num_examples=0,
        learning_rate_factor=1.0,
        kind="gradient",
        encodings=truth.encodings,
        soft_targets=truth.soft_targets,
        mapping=mapping,
    )
    return AdversaryView(
        threat_model=threat_model("auditor-of-encodings"),
        config=config,
        statistics=split.statistics,
        image_shape=truth.key.image_shape,
        num_classes=split.num_classes,
        observations=(observation,),
        rounds=(),
        pool=None,
    )


def figures(similarity: ImageSimilarity) -> dict[str, float]:
    """Return mean, best and share above 0.5 of the SSIM, and the baseline's mean."""
    ssim = similarity.attack.sign_ssim
    return {
        "ssim": round(ssim.mean, 4),
        "best": round(ssim.best, 4),
        "share_above_0.5": ssim.share_above_half or 0.0,
        "no_information": round(similarity.no_information.sign_ssim.mean, 4),
    }


def draw(rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw SSIM over exposures: a point for each seed, a line for their mean."""
    figure = Figure(figsize=(7, 4), dpi=120)
    axes = figure.subplots()
    for case in CASES:
        of_case = [row for row in rows if row["case"] == case]
        exposures = sorted({row["exposures_mean"] for row in of_case})
        means = [
            np.mean([row["ssim"] for row in of_case if row["exposures_mean"] == count])
            for count in exposures
        ]
        line = axes.plot(exposures, means, label=f"InstaHide {case}")[0]
        axes.scatter(
            [row["exposures_mean"] for row in of_case],
            [row["ssim"] for row in of_case],
            color=line.get_color(),
            s=16,
        )
    chance = float(np.mean([row["no_information"] for row in rows]))
    axes.axhline(chance, color="gray", linestyle="--", label="without information")
    ticks = sorted({row["exposures_mean"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(
        xlabel="exposures: distinct encodings that an image is in (mean)",
        ylabel="SSIM of decoded images",
        ylim=(0, 1.05),
    )
    axes.legend()
    with atomic_file(PICTURE) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")


if __name__ == "__main__":
    main()
