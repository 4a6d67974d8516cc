"""Attacks without optimisation give back exactly what a client trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from instahide_fl.attacks.batch_statistics import BatchStatistics, batch_average
from instahide_fl.attacks.first_layer import FirstLayer
from instahide_fl.attacks.hard_labels import HardLabels, count_labels
from instahide_fl.attacks.imprint import Imprint, crafted_parameters
from instahide_fl.attacks.layers.bins import empty_bins
from instahide_fl.attacks.layers.linear_layers import (
    LayerTensors,
    LinearLayer,
    first_linear_layer,
    last_linear_layer,
)
from instahide_fl.attacks.soft_labels import SoftLabels
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import AttackError
from instahide_fl.models.registry import build_model
from instahide_fl.types import PrivateSplit
from tests.library.attack_views import observed_client, settings

METHODS = ("none", "mixup", "inside", "cross")


def smooth_images(rng, count, shape=(3, 12, 12)):
    """Return images with large bright and dark areas, as photographs have them."""
    coarse = torch.from_numpy(rng.random((count, shape[0], 4, 4), np.float32))
    smooth = F.interpolate(coarse, shape[1:], mode="bicubic")
    noise = torch.from_numpy(rng.standard_normal(smooth.shape, np.float32))
    return (255 * (smooth + 0.05 * noise)).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def private(rng):
    targets = torch.from_numpy(rng.integers(0, 10, 40))
    return PrivateSplit(smooth_images(rng, 40), targets, 10)


@pytest.fixture
def public(rng):
    return MixingPool.from_images(smooth_images(rng, 400))


def attacked(attack, view):
    view.require(attack.name, attack.needs)
    rng = np.random.default_rng(1)
    (recovered,) = attack.reconstruct(view, rng, lambda *_: None).recovered
    return recovered


def exact(recovered, truth):
    """Return how many encodings were recovered, and how many images are none."""
    errors = (recovered.images[:, None] - truth.encodings).abs().amax((2, 3, 4))
    close = errors <= 1e-4
    return int(close.any(0).sum()), int((~close.any(1)).sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_linear_first_layer_gives_small_batches_away(
    private, public, method, batch_size
):
    view, truth = observed_client(settings(method, batch_size), private, public)
    assert exact(attacked(FirstLayer(), view), truth) == (batch_size, 0)


def test_a_local_step_hides_nothing_that_the_gradient_shows(private, public):
    config = settings("cross", 8, train__mode="update", train__weight_decay=0.01)
    few = private.subset(torch.arange(4))
    view, truth = observed_client(config, few, public)
    errors = attacked(FirstLayer(), view).images[:, None] - truth.encodings
    assert errors.abs().amax((2, 3, 4)).amin(0).max() < 1e-3


def test_first_layer_says_where_it_does_not_apply(private, public):
    cases = {
        'model.name = "mlp"': settings("none", 1, model__name="strided-cnn"),
        "relu": settings("none", 4, model__activation="sigmoid"),
        "largest-batch": settings("none", 40),
    }
    for remedy, config in cases.items():
        view, _ = observed_client(config, private, public)
        with pytest.raises(AttackError, match=remedy):
            attacked(FirstLayer(), view)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["mlp", "strided-cnn", "cnn-dropout"])
def test_a_batch_of_one_gives_its_soft_label_away(private, public, method, model):
    config = settings(method, 1, model__name=model)
    view, truth = observed_client(config, private, public)
    recovered = attacked(SoftLabels(), view)
    torch.testing.assert_close(
        recovered.soft_targets, truth.soft_targets, atol=1e-5, rtol=0
    )
    largest = float(truth.soft_targets.max())
    assert recovered.diagnostics["lambda_1"] == pytest.approx(largest, abs=1e-5)


def test_a_soft_label_of_two_images_is_refused(private, public):
    view, _ = observed_client(settings("cross", 2), private, public)
    with pytest.raises(AttackError, match="batch-size = 1"):
        attacked(SoftLabels(), view)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("model", ["mlp", "strided-cnn"])
def test_plain_labels_are_counted_with_their_repeats(
    private, public, batch_size, model
):
    config = settings("none", batch_size, model__name=model)
    view, truth = observed_client(config, private, public)
    classes = attacked(HardLabels(), view).classes
    assert classes.tolist() == truth.soft_targets.argmax(1).sort().values.tolist()


def test_of_encodings_only_classes_that_are_surely_there_are_named(private, public):
    view, truth = observed_client(settings("cross", 4), private, public)
    named = set(attacked(HardLabels(), view).classes.tolist())
    assert named
    assert named <= set(truth.soft_targets.sum(0).nonzero()[:, 0].tolist())


def test_counting_labels_by_hand():
    # Three images of class 0 and one of class 2, predictions 1/2, 1/4, 1/4 for each.
    expected = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    gradient = expected - torch.tensor([0.75, 0.0, 0.25])
    assert count_labels(gradient, expected, 4).tolist() == [3, 0, 1]


@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_running_statistics_give_those_of_the_batch_away(private, public, mode):
    config = settings(
        "cross",
        40,
        model__name="strided-cnn",
        model__normalization="batch",
        train__mode=mode,
    )
    view, truth = observed_client(config, private, public)
    found = attacked(BatchStatistics(), view).statistics
    model = build_model(config.network, view.image_shape, 10, config.seed)
    features = model.conv1(truth.encodings).detach()
    for name, expected in (
        ("norm1.mean", features.mean((0, 2, 3))),
        ("norm1.variance", features.var((0, 2, 3), correction=1)),
    ):
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=0)
    assert len(found) == 6


def test_several_batches_give_their_average():
    before, first, second = (torch.tensor([value]) for value in (1.0, 3.0, 5.0))
    after = 0.9 * (0.9 * before + 0.1 * first) + 0.1 * second
    average = (0.09 * first + 0.1 * second) / 0.19
    torch.testing.assert_close(batch_average(before, after - before, 0.1, 2), average)


def test_a_network_without_running_statistics_gives_none_away(private, public):
    view, _ = observed_client(settings("none", 4), private, public)
    with pytest.raises(AttackError, match="normalization"):
        attacked(BatchStatistics(), view)


def test_a_crafted_first_layer_gives_large_batches_away(private, public, tmp_path):
    public.save(tmp_path / "pool")
    config = settings(
        "cross",
        32,
        pool__source=str(tmp_path / "pool"),
        record__crafted="imprint",
        record__rounds="1",
    )
    view, truth = observed_client(config, private, public, crafted_parameters)
    recovered, wrong = exact(attacked(Imprint(), view), truth)
    assert recovered >= 29
    assert wrong <= 2


def alike(recovered, truth):
    """Return the correlation of each absolute encoding with what resembles it most."""
    correlation = torch.corrcoef(
        torch.cat([truth.encodings.abs().flatten(1), recovered.images.flatten(1)])
    )[: len(truth.encodings), len(truth.encodings) :]
    return correlation.amax(1)


def test_a_linear_first_layer_gives_absolute_encodings_away(private, public):
    config = settings("cross", 4, model__sign_invariant="auto")
    view, truth = observed_client(config, private, public)
    recovered = attacked(FirstLayer(), view)
    assert alike(recovered, truth).min() > 0.999
    scale = recovered.images.square().mean() / truth.encodings.square().mean()
    assert 0.5 < scale < 2
    assert recovered.images.min() >= 0


def test_bins_are_crafted_for_what_the_first_layer_sees(private, public, tmp_path):
    public.save(tmp_path / "pool")
    config = settings(
        "cross",
        32,
        model__sign_invariant=True,
        pool__source=str(tmp_path / "pool"),
        record__crafted="imprint",
        record__rounds="1",
    )
    view, truth = observed_client(config, private, public, crafted_parameters)
    assert (alike(attacked(Imprint(), view), truth) > 0.999).sum() >= 28


def test_images_that_are_taken_out_of_the_bins_uncover_others(rng):
    images, shares = rng.standard_normal((25, 100)), rng.uniform(0.2, 1, (25, 1))
    directions = rng.standard_normal((8, 100))
    lengths = np.linalg.norm(directions, axis=1)
    levels = np.linspace(-4, 2.5, 24)[:, None] * lengths
    weight = torch.from_numpy(np.repeat(directions, 24, axis=0))
    bias = torch.from_numpy(-levels.T.flatten())
    truth = torch.from_numpy(images)
    active = (truth @ weight.T + bias > 0) * torch.from_numpy(shares)
    gradient = LayerTensors(active.T @ truth, active.sum(0))
    found, passes = empty_bins(gradient, LayerTensors(weight, bias))
    errors = torch.cdist(truth, found).amin(1)
    assert (errors < 1e-5).sum() >= 22
    assert passes > 2


def test_imprint_says_where_it_does_not_apply(private, public):
    view, _ = observed_client(settings("none", 4), private, public)
    with pytest.raises(AttackError, match="crafted parameters"):
        attacked(Imprint(), view)
    config = settings("none", 4, model__activation="softplus")
    with pytest.raises(AttackError, match="relu"):
        observed_client(config, private, public, crafted_parameters)


def test_layers_are_found_by_what_they_do():
    names = {
        "mlp": (LinearLayer("hidden.weight", "hidden.bias"), "head"),
        "lenet": (None, "head"),
        "densenet-121": (None, "classifier"),
    }
    for name, (first, last) in names.items():
        config = settings("none", 1, model__name=name)
        assert first_linear_layer(config, (3, 16, 16), 10) == first
        head = last_linear_layer(config, (3, 16, 16), 10)
        assert head == LinearLayer(f"{last}.weight", f"{last}.bias")
