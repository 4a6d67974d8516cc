"""DP-SGD: single gradients against a loop, and what noise and clipping leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instahide_fl.config import DefenseConfig, ModelConfig, TrainConfig
from instahide_fl.defenses.example_gradients import (
    ExampleGradients,
    noisy_mean,
    poisson_sample,
)
from instahide_fl.defenses.transforms import l2_norm
from instahide_fl.encoding.encoder import IdentityEncoder
from instahide_fl.models.arrays import get_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.rng import stream
from instahide_fl.training.local import LocalTrainer
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.training.private import PrivateTrainer
from instahide_fl.types import EncodedBatch, PrivateSplit

# Every network without random layers, with the normalisation that it can have.
MODELS = [
    ("small-cnn", "group"),
    ("small-cnn", "none"),
    ("small-cnn", "group", True),
    ("lenet", "none"),
    ("mlp", "none"),
    ("strided-cnn", "group"),
    ("strided-lenet", "none"),
    ("preact-resnet-18", "group"),
    ("resnet-9", "group"),
    ("resnet-18", "group"),
]


def batch_of(count, seed=0):
    rng = stream(seed, "batch")
    images = torch.tensor(rng.normal(size=(count, 1, 28, 28))).float()
    targets = torch.tensor(rng.dirichlet(np.ones(10), size=count)).float()
    return EncodedBatch(images, targets)


def model_of(name="small-cnn", normalization="none", sign_invariant=False):
    config = ModelConfig(
        name=name,
        normalization=normalization,
        width=4,
        sign_invariant=sign_invariant,
    )
    return build_model(config, (1, 28, 28), 10, 0)


def gradient_of(model, images, targets):
    model.zero_grad()
    soft_cross_entropy(model(images), targets).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def clipped_by_loop(model, batch, bound):
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for image, target in zip(batch.images, batch.soft_targets, strict=True):
        gradient = gradient_of(model, image[None], target[None])
        factor = min(1.0, bound / l2_norm(gradient))
        for name, one in gradient.items():
            total[name] += factor * one
    return total


@pytest.mark.parametrize("network", MODELS)
def test_clipped_sums_are_those_of_a_loop_in_every_network(network):
    model, batch = model_of(*network), batch_of(3)
    norms = [
        l2_norm(gradient_of(model, image[None], target[None]))
        for image, target in zip(batch.images, batch.soft_targets, strict=True)
    ]
    bound = float(np.median(norms))  # some are clipped, some are not
    expected = clipped_by_loop(model, batch, bound)
    total, _ = ExampleGradients(model, soft_cross_entropy).clipped_sum(batch, bound)
    assert total.keys() == expected.keys()
    difference = {name: total[name] - expected[name] for name in total}
    assert l2_norm(difference) < 1e-4 * l2_norm(expected)


def test_one_example_moves_a_sum_by_no_more_than_the_bound(monkeypatch):
    monkeypatch.setattr("instahide_fl.defenses.example_gradients.MAX_VALUES", 1)
    examples = ExampleGradients(model_of(), soft_cross_entropy)  # one at a time
    batch = batch_of(5)
    without = EncodedBatch(batch.images[1:], batch.soft_targets[1:])
    sums = [examples.clipped_sum(one, 0.01)[0] for one in (batch, without)]
    moved = l2_norm({name: sums[0][name] - sums[1][name] for name in sums[0]})
    assert 0.009 < moved <= 0.01 * (1 + 1e-4)


def split_of(count):
    rng = stream(1, "split")
    images = torch.tensor(rng.integers(0, 256, (count, 1, 28, 28)), dtype=torch.uint8)
    return PrivateSplit(images, torch.tensor(rng.integers(0, 10, count)), 10)


@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_without_noise_and_clipping_it_is_the_plain_update(mode):
    """A batch of all images, which a Poisson sample of rate 1 is too."""
    split = split_of(24)
    train = TrainConfig(
        mode=mode, batch_size=24, local_epochs=2, momentum=0.5, weight_decay=0.01
    )
    free = DefenseConfig(
        differential_privacy="dp-sgd", noise_multiplier=0.0, max_gradient_norm=1e9
    )
    start = get_arrays(model_of())
    trainers = [
        LocalTrainer(model_of(), train),
        PrivateTrainer(model_of(), train, free),
    ]
    plain, private = (
        one.update(start, split, IdentityEncoder(), stream(0, "rows"))
        for one in trainers
    )
    assert plain.num_examples == private.num_examples == 24
    assert plain.metrics["train_loss"] == pytest.approx(private.metrics["train_loss"])
    for name, array in plain.arrays.items():
        torch.testing.assert_close(private.arrays[name], array, rtol=1e-4, atol=1e-6)


def test_the_noise_of_an_update_is_multiplier_times_norm_over_the_expected_batch():
    split, defense = (
        split_of(50),
        DefenseConfig(
            differential_privacy="dp-sgd", noise_multiplier=3.0, max_gradient_norm=0.5
        ),
    )
    trainer = PrivateTrainer(model_of(), TrainConfig(batch_size=10), defense)
    start = get_arrays(model_of())
    update = trainer.update(start, split, IdentityEncoder(), stream(0, "a"))
    noise = torch.cat([array.flatten() for array in update.arrays.values()])
    # The gradient itself, of norm at most 0.5 over thousands of entries, hardly counts.
    expected = 3.0 * 0.5 / 10
    assert float(noise.std()) == pytest.approx(expected, rel=0.03)
    assert update.num_examples == 10


def test_an_empty_sample_gives_noise_alone():
    split, defense = split_of(50), DefenseConfig(differential_privacy="dp-sgd")
    start = get_arrays(model_of())
    trainer = PrivateTrainer(model_of(), TrainConfig(batch_size=1), defense)
    empty = next(
        seed
        for seed in range(99)
        if not len(poisson_sample(50, 1 / 50, stream(seed, "a")))
    )
    update = trainer.update(start, split, IdentityEncoder(), stream(empty, "a"))
    assert update.num_examples == 1
    assert update.metrics["train_loss"] == 0.0
    assert all(bool(array.isfinite().all()) for array in update.arrays.values())
    assert l2_norm(update.arrays) > 0


def test_poisson_samples_take_each_row_at_its_rate_and_vary_in_size():
    rng = stream(0, "poisson")
    samples = [poisson_sample(40, 0.25, rng) for _ in range(2000)]
    counts = torch.bincount(torch.cat(samples), minlength=40)
    assert bool(((counts - 500).abs() < 5 * (2000 * 0.25 * 0.75) ** 0.5).all())
    sizes = torch.tensor([len(one) for one in samples]).float()
    assert float(sizes.var()) == pytest.approx(40 * 0.25 * 0.75, rel=0.15)
    assert len(poisson_sample(7, 1.0, rng)) == 7


def test_a_noisy_mean_divides_by_the_expected_number():
    mean = noisy_mean({"a": torch.full((20000,), 6.0)}, 1.5, 3.0, stream(0, "n"))["a"]
    assert float(mean.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(mean.std()) == pytest.approx(0.5, rel=0.03)
