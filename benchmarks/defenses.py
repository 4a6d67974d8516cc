"""CPU time of one client's round with each defence.

    python benchmarks/defenses.py

The least of ten rounds in mode gradient, for one client of mnist-5k on one thread:
small-cnn of width 16, batches of 64 plain images.
"""

from __future__ import annotations

import time

import torch

from instahide_fl.config import Config, DefenseConfig
from instahide_fl.data.datasets import load_dataset
from instahide_fl.defenses.transforms import apply_transforms
from instahide_fl.encoding.encoder import IdentityEncoder
from instahide_fl.models.arrays import get_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.rng import stream
from instahide_fl.training.local import LocalTrainer
from instahide_fl.training.private import PrivateTrainer

REPEATS = 10
DEFENSES = {
    "none": DefenseConfig(),
    "prune": DefenseConfig(transforms="prune"),
    "sign": DefenseConfig(transforms="sign"),
    "clip": DefenseConfig(transforms="clip"),
    "clip, noise": DefenseConfig(transforms="clip, noise"),
    "dp-sgd": DefenseConfig(differential_privacy="dp-sgd"),
}


def seconds_of(defense: DefenseConfig, config: Config) -> float:
    """Return the least CPU seconds of a round."""
    dataset = load_dataset(config.data, config.seed)
    split = dataset.train.subset(torch.arange(400))
    model = build_model(config.network, dataset.image_shape, 10, config.seed)
    start = get_arrays(model)
    private = defense.differential_privacy == "dp-sgd"
    trainer = (
        PrivateTrainer(model, config.train, defense)
        if private
        else LocalTrainer(model, config.train)
    )
    seconds = []
    for number in range(REPEATS):
        rng = stream(0, number)
        start_time = time.process_time()
        update = trainer.update(start, split, IdentityEncoder(), rng)
        apply_transforms(update.arrays, trainer.buffers, defense, rng)
        seconds.append(time.process_time() - start_time)
    return min(seconds)


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    for name, defense in DEFENSES.items():
        print(f"{name:12} {1000 * seconds_of(defense, Config()):6.1f} ms")


if __name__ == "__main__":
    main()
