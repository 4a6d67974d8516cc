"""Local training beside a plain loop in PyTorch, and what a round of FedSGD adds to it.

`python -m benchmarks.local_training`. All figures are CPU time of one process and one
thread, so that other work on the machine changes them little. The plain loops have the
library's network, in channels-last layout, and images that are there already.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.reporting import alternate, run_and_save
from instahide_fl.config import Config, EncoderConfig, ModelConfig, TrainConfig
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import Encoder, IdentityEncoder, InstaHideEncoder
from instahide_fl.engine.inline import run_inline
from instahide_fl.models.arrays import live_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.run_folder import RunFolder
from instahide_fl.training.allocator import keep_freed_memory
from instahide_fl.training.local import LocalTrainer
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.types import PrivateSplit

SHAPE, NUM_CLASSES, BATCH_SIZE = (3, 32, 32), 10, 10
REFERENCE = ModelConfig(name="cnn-dropout")
SMALL_CNN = ModelConfig(
    name="small-cnn", width=32, normalization="group", sign_invariant=True
)
RESNET_9 = SMALL_CNN.model_copy(update={"name": "resnet-9"})
NUM_CLIENTS, CLIENT_IMAGES = 10, 1000
ROUNDS = (5, 25)  # of the two runs whose difference is free of what a run starts with


def run(repeats: int = 5) -> dict[str, Any]:
    """Measure local steps, low precision, and rounds of FedSGD.

    Args:
        repeats: Number of turns, in each of which all variants run once.
    """
    torch.set_num_threads(1)
    rows = _step_rows(repeats)
    keep_freed_memory()
    for model, precision in (
        (REFERENCE, "float32"),
        (RESNET_9, "float32"),
        (RESNET_9, "bfloat16"),
    ):
        rows += _epoch_rows(model, precision, repeats)
    shares = {
        "small-cnn, float32": _fedsgd_share(SMALL_CNN, "float32", repeats),
        "resnet-9, bfloat16": _fedsgd_share(RESNET_9, "bfloat16", repeats),
    }
    return {"name": "local-training", "rows": rows, "fedsgd_overhead": shares}


def _step_rows(repeats: int) -> list[dict[str, Any]]:
    """Measure the plain loop as glibc's allocator is set when a process starts."""
    plain = partial(_plain_epoch, *_training(REFERENCE, "float32"))
    seconds = alternate({"plain": plain}, repeats, time.process_time)["plain"]
    return [_row(REFERENCE, "float32", "plain, allocator as it is", seconds, seconds)]


def _epoch_rows(
    model: ModelConfig, precision: str, repeats: int
) -> list[dict[str, Any]]:
    """Measure five steps of a client: plain, ours on images, and ours on encodings."""
    variants: dict[str, Callable[[], object]] = {
        "plain": partial(_plain_epoch, *_training(model, precision)),
        "instahide-fl, none": _our_epoch(model, precision, IdentityEncoder()),
        "instahide-fl, InstaHide k = 4": _our_epoch(model, precision, _encoder()),
    }
    medians = alternate(variants, repeats, time.process_time)
    return [
        _row(model, precision, name, seconds, medians["plain"])
        for name, seconds in medians.items()
    ]


def _row(
    model: ModelConfig, precision: str, name: str, seconds: float, plain: float
) -> dict[str, Any]:
    return {
        "network": model.name,
        "precision": precision,
        "loop": name,
        "ms a step": seconds * 1000 / 5,
        "to plain": seconds / plain,
    }


def _training(
    model_config: ModelConfig, precision: str
) -> tuple[torch.nn.Module, torch.optim.Optimizer, str, list[tuple[Tensor, Tensor]]]:
    """Return a network, its optimizer, the precision, and five batches."""
    model = build_model(model_config, SHAPE, NUM_CLASSES, seed=0).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    batches = [
        (torch.randn(BATCH_SIZE, *SHAPE), torch.full((BATCH_SIZE, NUM_CLASSES), 0.1))
        for _ in range(5)
    ]
    return model, optimizer, precision, batches


def _plain_epoch(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: str,
    batches: list[tuple[Tensor, Tensor]],
) -> None:
    for images, targets in batches:
        optimizer.zero_grad()
        _backward(model, precision, images, targets)
        optimizer.step()


def _backward(
    model: torch.nn.Module, precision: str, images: Tensor, targets: Tensor
) -> None:
    low = precision == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        loss = soft_cross_entropy(model(images), targets)
    loss.backward()  # type: ignore[no-untyped-call]


def _our_epoch(
    model_config: ModelConfig, precision: str, encoder: Encoder
) -> Callable[[], object]:
    config = TrainConfig(
        mode="update", batch_size=BATCH_SIZE, learning_rate=0.01, precision=precision
    )
    model = build_model(model_config, SHAPE, NUM_CLASSES, seed=0)
    arrays = {name: a.detach().clone() for name, a in live_arrays(model).items()}
    split = PrivateSplit(_pixels(5 * BATCH_SIZE), torch.arange(50) % 10, NUM_CLASSES)
    trainer, rng = LocalTrainer(model, config), np.random.default_rng(0)
    return partial(trainer.update, arrays, split, encoder, rng)


def _encoder() -> InstaHideEncoder:
    return InstaHideEncoder(
        EncoderConfig(num_mixed=4), MixingPool.from_images(_pixels(1000))
    )


def _pixels(count: int) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8))


def _fedsgd_share(model_config: ModelConfig, precision: str, repeats: int) -> float:
    """Return the part of a round that is not forward and backward pass.

    A round of engine inline, 10 clients with 10 images each, against the same passes
    in a plain loop: encoding, checks, sums, records and the server's step are the rest.
    """
    model, _, _, batches = _training(model_config, precision)

    def passes() -> None:
        for number in range(NUM_CLIENTS):
            model.zero_grad()
            _backward(model, precision, *batches[number % len(batches)])

    # Before, between and after the runs, as the machine's speed drifts.
    measured = [alternate({"": passes}, repeats, time.process_time)[""]]
    seconds = []
    for rounds in ROUNDS:
        seconds.append(_run_seconds(model_config, precision, rounds))
        measured.append(alternate({"": passes}, repeats, time.process_time)[""])
    round_seconds = (seconds[1] - seconds[0]) / (ROUNDS[1] - ROUNDS[0])
    return 1 - sum(measured) / len(measured) / round_seconds


def _run_seconds(model_config: ModelConfig, precision: str, rounds: int) -> float:
    """Return the CPU seconds of a run."""
    settings = {
        "data.dataset": f"noise:{NUM_CLIENTS * CLIENT_IMAGES}x3x32x32",
        "partition.num-clients": NUM_CLIENTS,
        "model.name": model_config.name,
        "model.width": model_config.width,
        "model.normalization": "group",
        "model.sign-invariant": True,
        "server.optimizer": "adam",
        "train.precision": precision,
        "train.batch-size": BATCH_SIZE,
        "train.rounds": rounds,
        "train.evaluate-every": 1_000_000,
    }
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run"
        config = Config().with_values({**settings, "output.folder": str(path)})
        folder = RunFolder.create(path, config)
        start = time.process_time()
        run_inline(config, folder)
        return time.process_time() - start


if __name__ == "__main__":
    run_and_save(run)
