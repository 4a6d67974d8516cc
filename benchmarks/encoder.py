"""Encoder throughput: this package against the obvious ways to do it.

`straightforward` is the published procedure (Huang et al., ICML 2020, section 4), in
our own code: it encodes the whole training set once an epoch, draws coefficients by
rejection one sample at a time, gathers k normalised float images for each encoding
(each gather as large as the set), and draws a float mask. `straightforward, batches`
does the same batch by batch; `vectorised torch` also draws a batch's coefficients
together.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.reporting import alternate, run_and_save
from instahide_fl import EncoderConfig, InstaHideEncoder, MixingPool, PrivateSplit
from instahide_fl.encoding.mixing import draw_coefficients

BASELINE = "straightforward"
MAX_COEFFICIENT, MIN_WEIGHT = 0.65, 0.3  # c1 and c2 of the paper


def run(
    images: int = 20_000, repeats: int = 5, batch_size: int = 1000
) -> dict[str, Any]:
    """Measure encoding of all images once.

    Args:
        images: Number of private images, and of images of the pool, 3x32x32.
        repeats: Number of turns, in each of which all variants run once.
        batch_size: Images encoded at a time, by every variant but the first.
    """
    rng = np.random.default_rng(0)
    draw = lambda: torch.from_numpy(  # noqa: E731
        rng.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
    )
    split = PrivateSplit(draw(), torch.arange(images) % 10, 10)
    pool = MixingPool.from_images(draw())
    private = split.statistics.normalise(split.images)
    public = pool.statistics.normalise(pool.images)
    batches = torch.split(torch.arange(images), batch_size)
    rows = []
    for mixed in (4, 6):
        config = EncoderConfig(num_mixed=mixed)
        encoder = InstaHideEncoder(config, pool)
        variants: dict[str, Callable[[Tensor], object]] = {
            "straightforward, batches": partial(
                encode_straightforward, private, public, config, rng
            ),
            "vectorised torch": partial(
                encode_vectorised, private, public, config, rng
            ),
            "instahide-fl": partial(_instahide_fl, encoder, split, rng),
        }
        for cores in sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(cores)
            all_at_once = [torch.arange(images)]
            straightforward = variants["straightforward, batches"]
            turns = {BASELINE: partial(_encode_all, straightforward, all_at_once)}
            for name, encode in variants.items():
                turns[name] = partial(_encode_all, encode, batches)
            medians = alternate(turns, repeats)
            rows += [
                {
                    "k": mixed,
                    "cores": cores,
                    "variant": name,
                    "images_per_second": images / seconds,
                    "ratio": medians[BASELINE] / seconds,
                }
                for name, seconds in medians.items()
            ]
    return {"name": "encoder", "rows": rows, "first_use_seconds": _first_use()}


def _encode_all(encode: Callable[[Tensor], object], batches: Sequence[Tensor]) -> None:
    for batch in batches:
        encode(batch)


def _instahide_fl(
    encoder: InstaHideEncoder,
    split: PrivateSplit,
    rng: np.random.Generator,
    batch: Tensor,
) -> None:
    encoder.encode(batch, split, rng)


def encode_straightforward(
    private: Tensor,
    public: Tensor,
    config: EncoderConfig,
    rng: np.random.Generator,
    batch: Tensor,
) -> Tensor:
    """Encode by the published procedure; coefficients are drawn one encoding at a time.

    Args:
        private: Normalised private images, f32[N,C,H,W].
        public: Normalised images of the pool, f32[M,C,H,W].
        config: k, p and the bounds of coefficients.
        rng: The generator that draws coefficients.
        batch: Rows of the private images, i64[B].

    Returns:
        f32[B,C,H,W].
    """
    count, mixed = len(batch), config.num_mixed
    coefficients = np.empty((count, mixed), np.float32)
    for i in range(count):
        while True:
            drawn = np.abs(rng.standard_normal(mixed))
            drawn = drawn / drawn.sum()
            if drawn.max() <= MAX_COEFFICIENT and drawn[:2].sum() >= MIN_WEIGHT:
                break
        coefficients[i] = drawn
    weights = torch.from_numpy(coefficients)
    total = torch.zeros(count, *private.shape[1:])
    for j in range(mixed):
        rows = batch if j == 0 else torch.randint(len(private), (count,))
        source = private[rows] if j < 2 else public[rows]
        total += weights[:, j, None, None, None] * source
    signs = torch.randint(0, 2, total.shape).float() * 2 - 1
    return total * signs


def encode_vectorised(
    private: Tensor,
    public: Tensor,
    config: EncoderConfig,
    rng: np.random.Generator,
    batch: Tensor,
) -> Tensor:
    """Encode by the published procedure; coefficients are drawn for the whole batch.

    Args:
        private: Normalised private images, f32[N,C,H,W].
        public: Normalised images of the pool, f32[M,C,H,W].
        config: k, p and the bounds of coefficients.
        rng: The generator that draws coefficients.
        batch: Rows of the private images, i64[B].

    Returns:
        f32[B,C,H,W].
    """
    count = len(batch)
    weights = draw_coefficients(count, config, rng)[:, :, None, None, None]
    total = private[batch] * weights[:, 0]
    for j in range(1, config.num_mixed):
        rows = torch.randint(len(private), (count,))
        total.addcmul_(private[rows] if j < 2 else public[rows], weights[:, j])
    signs = torch.randint(0, 2, total.shape, dtype=torch.int8).mul_(2).sub_(1)
    return total.mul_(signs)


def _first_use() -> dict[str, float]:
    """Return the seconds until the loop is ready: compiled, and from numba's cache."""
    import tempfile

    code = (
        "import time; start = time.perf_counter();"
        "from instahide_fl.encoding.fused import prepare; "
        "middle = time.perf_counter(); prepare();"
        "print(time.perf_counter() - middle)"
    )
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        for name in ("compiled", "cached"):
            start = time.perf_counter()
            process = subprocess.run(
                [sys.executable, "-c", code],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            seconds[name] = float(process.stdout)
            seconds[f"{name}, whole process"] = time.perf_counter() - start
    return seconds


if __name__ == "__main__":
    run_and_save(run)
