"""Attacks that match gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from instahide_fl.attacks.base import ignore_progress
from instahide_fl.attacks.deep_leakage import DeepLeakage, ImprovedDeepLeakage
from instahide_fl.attacks.hard_labels import HardLabels
from instahide_fl.attacks.inverting_gradients import InvertingGradients
from instahide_fl.attacks.matching.gradient_matching import (
    LayerStatistics,
    cosine_distance,
    layer_statistics,
    simulated_updates,
    squared_distance,
    statistics_distance,
    total_variation,
)
from instahide_fl.attacks.matching.guess import Box, best_of_restarts
from instahide_fl.attacks.matching.victims import alike, stack_victims, training_network
from instahide_fl.attacks.soft_labels import SoftLabels
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import AttackError, ThreatModelError
from instahide_fl.transcript.threat_model import THREAT_MODELS
from instahide_fl.types import PrivateSplit
from tests.library.attack_views import observed_client, settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos():
    """Smooth private images: patches of photographs, cut small."""
    images = MixingPool.photos(8, 3).images[:40]
    return PrivateSplit(images.clone(), torch.arange(40) % 10, 10)


def pool():
    return MixingPool.photos(8, 3)


def built(view):
    return training_network(view.config, view.image_shape, view.num_classes)


CNN = {"model__name": "strided-cnn", "model__width": 32}


@pytest.mark.parametrize("method", ["none", "cross"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__mode": "update", "train__local_epochs": 2, "train__momentum": 0.9},
        {"train__mode": "update", "train__weight_decay": 0.1},
        {"model__sign_invariant": True},
    ],
)
def test_the_true_encodings_give_the_observed_update(photos, method, changes):
    few = photos.subset(torch.arange(6))
    config = settings(method, 4, **CNN, train__learning_rate=0.05, **changes)
    view, truth = observed_client(config, few, pool())
    (group,) = alike(view.observations)
    victims = stack_victims(view, built(view), group, CPU)
    found = simulated_updates(victims, truth.encodings[None], truth.soft_targets[None])
    for name, array in found.items():
        torch.testing.assert_close(array, victims.updates[name], rtol=1e-4, atol=1e-6)
    assert cosine_distance(found, victims.updates).item() < 1e-5
    assert squared_distance(found, victims.updates).item() < 1e-8


@pytest.mark.parametrize("method", ["none", "cross"])
def test_inverting_gradients_finds_encodings_side_by_side(photos, method):
    config = settings(method, 1, **CNN)
    views = [
        observed_client(config, photos.subset(torch.arange(a, a + 4)), pool())
        for a in (0, 8)
    ]
    both = tuple(
        replace(view.observations[0], client=str(i))
        for i, (view, _) in enumerate(views)
    )
    view = replace(views[0][0], observations=both)
    attack = InvertingGradients(iterations=300, restarts=2)
    steps = []
    rng = np.random.default_rng(0)
    found = attack.reconstruct(view, rng, lambda done, _: steps.append(done))
    assert steps[-1] == 300
    for one, (_, truth) in zip(found.recovered, views, strict=True):
        off = (one.images - truth.encodings).abs().mean()
        assert off < 0.3 * truth.encodings.abs().mean()
    again = attack.reconstruct(view, np.random.default_rng(0), ignore_progress)
    assert torch.equal(found.recovered[1].images, again.recovered[1].images)


def test_patience_ends_a_search_that_gets_no_further(photos):
    config = settings("none", 1, **CNN)
    view, _ = observed_client(config, photos.subset(torch.arange(4)), None)
    steps = []
    attack = InvertingGradients(iterations=5000, patience=30, step_size=1e-9)
    attack.reconstruct(view, np.random.default_rng(0), lambda d, _: steps.append(d))
    assert len(steps) < 100


def test_local_steps_are_inverted_by_unrolling_them(photos):
    changes = {"train__mode": "update", "train__learning_rate": 0.01}
    config = settings("none", 1, **CNN, **changes)
    view, truth = observed_client(config, photos.subset(torch.arange(2)), None)
    view = replace(
        view,
        observations=(replace(view.observations[0], soft_targets=truth.soft_targets),),
    )
    attack = InvertingGradients(iterations=400)
    (found,) = attack.reconstruct(
        view, np.random.default_rng(0), ignore_progress
    ).recovered
    assert found.images.shape == (2, 3, 8, 8)
    # Which step an image was used in hardly shows: compare in the better order.
    off = min(
        (found.images[list(order)] - truth.encodings).abs().mean()
        for order in ([0, 1], [1, 0])
    )
    assert off < 0.5 * truth.encodings.abs().mean()


@pytest.mark.parametrize(
    "attack", [pytest.param(DeepLeakage, marks=pytest.mark.long), ImprovedDeepLeakage]
)
def test_deep_leakage_matches_the_gradient_exactly(photos, attack):
    config = settings(
        "cross", 1, model__name="strided-lenet", model__activation="sigmoid"
    )
    view, truth = observed_client(config, photos.subset(torch.arange(4)), pool())
    found = attack(iterations=30).reconstruct(
        view, np.random.default_rng(0), ignore_progress
    )
    (one,) = found.recovered
    assert one.diagnostics["distance"] < 1e-6
    torch.testing.assert_close(one.images, truth.encodings, rtol=0, atol=0.1)
    if attack is DeepLeakage:
        torch.testing.assert_close(
            one.soft_targets, truth.soft_targets, rtol=0, atol=0.01
        )


def test_statistics_of_layers_are_those_of_the_true_batch(photos):
    config = settings("none", 4, **CNN, model__normalization="batch")
    view, truth = observed_client(config, photos.subset(torch.arange(4)), None)
    victims = stack_victims(view, built(view), view.observations, CPU)
    wanted = layer_statistics(victims, truth.encodings[None])
    assert [mean.shape for mean in wanted.means] == [(1, 32), (1, 64), (1, 128)]
    assert statistics_distance(wanted, wanted).item() == 0
    other = layer_statistics(victims, torch.zeros(1, 4, 3, 8, 8))
    assert isinstance(other, LayerStatistics)
    assert statistics_distance(other, wanted).item() > 1


def test_running_statistics_help_where_they_are_known(photos):
    few = photos.subset(torch.arange(4))
    config = settings("none", 4, **CNN, model__normalization="batch")
    view, truth = observed_client(config, few, None)
    view = replace(
        view,
        observations=(replace(view.observations[0], soft_targets=truth.soft_targets),),
    )
    errors = []
    for weight in (0.0, 0.01):
        attack = InvertingGradients(iterations=150, batch_statistics=weight)
        (one,) = attack.reconstruct(
            view, np.random.default_rng(0), ignore_progress
        ).recovered
        off = torch.cdist(one.images.flatten(1), truth.encodings.flatten(1), p=1)
        errors.append(off.amin(1).mean())
    assert errors[1] < 0.95 * errors[0]
    blind = replace(view, threat_model=THREAT_MODELS["participant"])
    with pytest.raises(ThreatModelError, match="running statistics"):
        attack.reconstruct(blind, np.random.default_rng(0), ignore_progress)


def test_signs_do_not_change_the_variation_of_absolute_values():
    images = torch.rand(2, 3, 3, 6, 6)
    signs = torch.where(torch.rand_like(images) < 0.5, -1.0, 1.0)
    flipped = total_variation(images * signs, of_absolute=True)
    torch.testing.assert_close(flipped, total_variation(images, of_absolute=False))
    assert (total_variation(images * signs, of_absolute=False) > flipped).all()


def test_boxes_hold_what_encoders_make_and_restarts_keep_the_best(photos):
    for method in ("none", "mixup", "inside", "cross"):
        config = settings(method, 4, **CNN)
        view, truth = observed_client(config, photos, pool())
        box = Box.of(view, CPU)
        assert (truth.encodings >= box.low - 1e-5).all()
        assert (truth.encodings <= box.high + 1e-5).all()
    values, losses = torch.arange(6.0), torch.tensor([3.0, 1, 2, 0, 5, 4])
    assert best_of_restarts(values, losses, 3).tolist() == [1, 3]


def test_what_cannot_be_matched_is_refused(photos):
    config = settings("none", 1, model__name="cnn-dropout")
    view, _ = observed_client(config, photos.subset(torch.arange(4)), None)
    with pytest.raises(AttackError, match="drops units at random"):
        InvertingGradients().reconstruct(
            view, np.random.default_rng(0), ignore_progress
        )
    with pytest.raises(AttackError, match="no single update"):
        InvertingGradients().reconstruct(
            replace(view, observations=()), np.random.default_rng(0), ignore_progress
        )


@pytest.mark.parametrize(
    "changes", [{"train__optimizer": "adam"}, {"train__clip_norm": 0.1}]
)
def test_local_steps_that_are_not_plain_sgd_are_refused(photos, changes):
    few = photos.subset(torch.arange(1))
    config = settings("none", 4, **CNN, train__mode="update", **changes)
    view, _ = observed_client(config, few, pool())
    for attack in (InvertingGradients(iterations=1), SoftLabels(), HardLabels()):
        with pytest.raises(AttackError, match=r'"sgd" and 0, or with train\.mode'):
            attack.reconstruct(view, np.random.default_rng(0), ignore_progress)
