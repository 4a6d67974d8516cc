"""Training, encoding and evaluation on a GPU, with the library alone.

`sh benchmarks/gpu.sh` needs neither Flower nor Ray. The network is that of the recipe
for CIFAR-10: resnet-9 with GroupNorm, sign-invariant, on InstaHide encodings (cross,
k = 4) of random images, which are as fast as real ones.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.reporting import save, show
from instahide_fl.config import (
    EncoderConfig,
    ModelConfig,
    ResourcesConfig,
    TrainConfig,
)
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import InstaHideEncoder
from instahide_fl.encoding.mixing import draw_coefficients
from instahide_fl.evaluation.clean import evaluate
from instahide_fl.models.arrays import live_arrays
from instahide_fl.models.layout import accept_any_layout
from instahide_fl.models.registry import build_model
from instahide_fl.training.device import training_device
from instahide_fl.training.local import LocalTrainer
from instahide_fl.types import PrivateSplit

SHAPE, NUM_CLASSES, NUM_MIXED = (3, 32, 32), 10, 4
NO_GPU = 2  # the exit code without a GPU
MAX_WAIT = 120.0  # seconds for a client's process to start


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        images: Number of private images, of images of the pool, and of test images.
        batch_size: Number of images in a step, and of encodings made at a time.
        widths: Widths of the network.
        clients: Numbers of clients that share the device, each a process.
        seconds: Seconds that each figure is measured for.
    """

    images: int
    batch_size: int
    widths: tuple[int, ...]
    clients: tuple[int, ...]
    seconds: float


FULL = Sizes(
    images=20_000, batch_size=100, widths=(32, 64), clients=(1, 2, 4), seconds=5.0
)
TINY = Sizes(images=16, batch_size=4, widths=(4,), clients=(1, 2), seconds=0.05)


@dataclass(frozen=True)
class Variant:
    """A network and how it is trained.

    Attributes:
        width: Width of the network.
        precision: A value of `train.precision`.
        channels_last: Whether the network and its inputs are channels last in memory.
    """

    width: int
    precision: str = "bfloat16"
    channels_last: bool = True

    @property
    def name(self) -> str:
        """The variant in words."""
        layout = "channels last" if self.channels_last else "contiguous"
        return f"width {self.width}, {self.precision}, {layout}"


def main() -> int:
    """Measure, show the figures and write their file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cpu", action="store_true", help="a tiny size, on the CPU")
    parser.add_argument("--out", type=Path, help="folder of gpu.json")
    arguments = parser.parse_args()
    if not arguments.cpu and not torch.cuda.is_available():
        print(
            "no GPU: PyTorch finds none here (--cpu tests this script at a tiny size)"
        )
        return NO_GPU
    device = training_device(
        ResourcesConfig(gpus_per_client=0.0 if arguments.cpu else 1.0)
    )
    result = run(TINY if arguments.cpu else FULL, device)
    show(result)
    if arguments.out or not arguments.cpu:
        save(result, *([arguments.out] if arguments.out else []))
    return 0


def run(sizes: Sizes, device: str) -> dict[str, Any]:
    """Measure everything.

    Args:
        sizes: How much is measured.
        device: "cuda" or "cpu".
    """
    torch.set_num_threads(1)
    rows = [
        *_training_rows(sizes, device),
        *_client_rows(sizes, device),
        *_encoding_rows(sizes, device),
        *_evaluation_rows(sizes, device),
    ]
    return {"name": "gpu", "rows": rows, "device": device}


def _rows(part: str, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Return the rates of a comparison, each with its ratio to the first."""
    base = next(iter(rates.values()))
    return [
        {"measured": part, "variant": name, "a second": rate, "ratio": rate / base}
        for name, rate in rates.items()
    ]


def _training_rows(sizes: Sizes, device: str) -> list[dict[str, Any]]:
    """Measure one client's steps: precision and memory layout, for each width."""
    rows = []
    for width in sizes.widths:
        variants = [
            Variant(width, precision, channels_last)
            for precision in ("float32", "bfloat16")
            for channels_last in (False, True)
        ]
        rates = {
            variant.name: Client(variant, sizes, device).steps_a_second()
            for variant in variants
        }
        rows += _rows("steps, one client", rates)
    return rows


def _client_rows(sizes: Sizes, device: str) -> list[dict[str, Any]]:
    """Measure the steps of several clients side by side, for the widest network."""
    variant = Variant(max(sizes.widths))
    rates = {
        f"{count} client{'s' * (count > 1)}, {variant.name}": _steps_of_clients(
            count, variant, sizes, device
        )
        for count in sizes.clients
    }
    return _rows("steps, all clients", rates)


def _encoding_rows(sizes: Sizes, device: str) -> list[dict[str, Any]]:
    """Measure the encoder beside the authors' procedure, both on the device."""
    split, pool = _images(sizes, device), _pool(sizes, device)
    config = EncoderConfig(num_mixed=NUM_MIXED)
    encoder, rng = InstaHideEncoder(config, pool), np.random.default_rng(0)
    private = split.statistics.normalise(split.images)
    public = pool.statistics.normalise(pool.images)
    rows = torch.arange(min(1000, sizes.images))
    encoders: dict[str, Callable[[], object]] = {
        "vectorised": partial(_vectorised, private, public, config, rng, rows),
        "instahide-fl": lambda: encoder.encode(rows, split, rng),
    }
    rates = {
        name: len(rows) * _calls_a_second(encode, sizes.seconds, device)
        for name, encode in encoders.items()
    }
    return _rows(f"images encoded, k = {NUM_MIXED}", rates)


def _vectorised(
    private: Tensor,
    public: Tensor,
    config: EncoderConfig,
    rng: np.random.Generator,
    rows: Tensor,
) -> Tensor:
    """Encode as the authors' code does: all random numbers but coefficients on it.

    Args:
        private: Normalised private images f32[N,C,H,W] on the device.
        public: Normalised images of the pool f32[M,C,H,W] on the device.
        config: k, p and the bounds of coefficients.
        rng: The generator that draws coefficients.
        rows: Rows of the private images, i64[B].

    Returns:
        f32[B,C,H,W].
    """
    device, count = private.device, len(rows)
    weights = draw_coefficients(count, config, rng).to(device)[:, :, None, None, None]
    total = private[rows.to(device)] * weights[:, 0]
    for column in range(1, config.num_mixed):
        source = private if column < config.private_count else public
        partners = torch.randint(len(source), (count,), device=device)
        total.addcmul_(source[partners], weights[:, column])
    signs = torch.randint(0, 2, total.shape, dtype=torch.int8, device=device)
    return total.mul_(signs.mul_(2).sub_(1))


def _evaluation_rows(sizes: Sizes, device: str) -> list[dict[str, Any]]:
    """Measure the evaluation on clean images, from the device's own memory."""
    split = _images(sizes, device)
    rates = {}
    for width in sizes.widths:
        model = _build(Variant(width)).to(device)
        classify = partial(evaluate, model, split)
        calls = _calls_a_second(classify, sizes.seconds, device)
        rates[f"width {width}, float32"] = len(split) * calls
    return _rows("images evaluated", rates)


def _build(variant: Variant) -> nn.Module:
    config = ModelConfig(
        name="resnet-9",
        width=variant.width,
        normalization="group",
        sign_invariant=True,
    )
    model = build_model(config, SHAPE, NUM_CLASSES, seed=0)
    if not variant.channels_last:
        accept_any_layout(model)
        model = model.to(memory_format=torch.contiguous_format)
    return model


def _images(sizes: Sizes, device: str) -> PrivateSplit:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (sizes.images, *SHAPE), dtype=np.uint8)
    targets = torch.arange(sizes.images) % NUM_CLASSES
    return PrivateSplit(torch.from_numpy(pixels), targets, NUM_CLASSES).to(device)


def _pool(sizes: Sizes, device: str) -> MixingPool:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (sizes.images, *SHAPE), dtype=np.uint8)
    return MixingPool.from_images(torch.from_numpy(pixels)).to(device)


class Client:
    """A client that trains on encodings, as clients do in a round.

    Args:
        variant: The network and how it is trained.
        sizes: How much is measured.
        device: "cuda" or "cpu".
    """

    def __init__(self, variant: Variant, sizes: Sizes, device: str) -> None:
        self._config = TrainConfig(
            mode="update",
            batch_size=sizes.batch_size,
            learning_rate=0.01,
            momentum=0.9,
            precision=variant.precision,
        )
        self._sizes, self._device = sizes, device
        model = _build(variant).to(device)
        self._trainer = LocalTrainer(model, self._config)
        arrays = live_arrays(model).items()
        self._arrays = {name: array.detach().clone() for name, array in arrays}
        # A round is ten steps, or it would not end within the time.
        images = _images(sizes, device)
        self._split = images.subset(torch.arange(len(images))[: 10 * sizes.batch_size])
        self._rng = np.random.default_rng(0)
        config = EncoderConfig(num_mixed=NUM_MIXED)
        self._encoder = InstaHideEncoder(config, _pool(sizes, device))
        self.train_round()  # the first one loads kernels

    def train_round(self) -> None:
        """Train for one round."""
        self._trainer.update(self._arrays, self._split, self._encoder, self._rng)

    def steps_a_second(self) -> float:
        """Train for the time that is to be measured."""
        rate = _calls_a_second(self.train_round, self._sizes.seconds, self._device)
        return rate * -(-len(self._split) // self._config.batch_size)


def _steps_of_clients(count: int, variant: Variant, sizes: Sizes, device: str) -> float:
    """Return the steps a second of all clients together, each in a process."""
    spawning = multiprocessing.get_context("spawn")
    barrier, rates = spawning.Barrier(count), spawning.Queue()
    arguments = (variant, sizes, device, barrier, rates)
    clients = [
        spawning.Process(target=_train_in_process, args=arguments, daemon=True)
        for _ in range(count)
    ]
    for client in clients:
        client.start()
    try:
        return sum(rates.get(timeout=MAX_WAIT + sizes.seconds) for _ in clients)
    except queue.Empty:
        raise SystemExit(f"{count} clients did not train: see above") from None
    finally:
        for client in clients:
            client.join(timeout=10)


def _train_in_process(
    variant: Variant, sizes: Sizes, device: str, barrier: Any, rates: Any
) -> None:
    torch.set_num_threads(1)
    # Deterministic algorithms, as on every client.
    training_device(ResourcesConfig(gpus_per_client=float(device == "cuda")))
    client = Client(variant, sizes, device)
    barrier.wait(MAX_WAIT)
    rates.put(client.steps_a_second())


def _calls_a_second(work: Callable[[], object], seconds: float, device: str) -> float:
    """Repeat for some seconds, once more before, and wait for the device at the end."""
    work()
    _wait_for(device)
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < seconds:
        work()
        _wait_for(device)
        calls += 1
    return calls / (time.perf_counter() - start)


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
