"""Attacks by gradient matching that know the defence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instahide_fl.attacks.base import ignore_progress
from instahide_fl.attacks.deep_leakage import ImprovedDeepLeakage
from instahide_fl.attacks.inverting_gradients import InvertingGradients
from instahide_fl.attacks.layers.last_layer import LogitGradient
from instahide_fl.attacks.matching.gradient_matching import (
    cosine_distance,
    simulated_updates,
    squared_distance,
)
from instahide_fl.attacks.matching.side_by_side import fits_one_pass, update_distance
from instahide_fl.attacks.matching.simulated_defense import SimulatedDefense
from instahide_fl.attacks.matching.variation_weight import climb
from instahide_fl.attacks.matching.victims import stack_victims, training_network
from instahide_fl.attacks.soft_labels import SoftLabels, estimate_label
from instahide_fl.config import DefenseConfig
from instahide_fl.data.pool import MixingPool
from instahide_fl.defenses.transforms import apply_transforms
from instahide_fl.errors import AttackError
from instahide_fl.types import PrivateSplit
from tests.library.attack_views import observed_client, settings

CPU = torch.device("cpu")
CNN = {"model__name": "strided-cnn", "model__width": 32}


def photos(start, stop):
    """Return smooth private images: patches of photographs, cut small."""
    images = MixingPool.photos(8, 3).images[start:stop]
    return PrivateSplit(images.clone(), torch.arange(start, stop) % 10, 10)


def defended(view, **defense):
    """Return the view of a run with these settings of the defence."""
    config = DefenseConfig(**defense)
    changes = {f"defense.{k.replace('_', '-')}": v for k, v in defense.items()}
    (observation,) = view.observations
    update = apply_transforms(observation.update, (), config, np.random.default_rng(0))
    return replace(
        view,
        config=view.config.with_values(changes),
        observations=(replace(observation, update=update),),
    )


def stacked(view):
    """Return a view's victims, with its defence repeated on guesses."""
    model = training_network(view.config, view.image_shape, view.num_classes)
    victims = stack_victims(view, model, view.observations, CPU)
    return victims.behind(SimulatedDefense.of(view.config.defense, 1))


DEFENSES = {
    "pruned": {"transforms": "prune", "prune_share": 0.9},
    "pruned and clipped": {"transforms": "prune, clip", "clip_norm": 0.01},
    "pruned behind small noise": {
        "transforms": "prune, clip, noise",
        "clip_norm": 0.01,
        "noise_multiplier": 1e-6,
    },
}


@pytest.mark.parametrize("mode", ["gradient", "update"])
@pytest.mark.parametrize("name", DEFENSES)
def test_the_true_encodings_give_what_was_sent_behind_a_defence(name, mode):
    config = settings("none", 2, **CNN, train__mode=mode)
    view, truth = observed_client(config, photos(0, 2), None)
    victims = stacked(defended(view, **DEFENSES[name]))
    unaware = replace(victims, defense=None)
    truths = truth.encodings[None].requires_grad_(), truth.soft_targets[None]
    for kind in ("cosine", "squared"):
        aware = update_distance(victims, kind)(*truths).item()
        assert aware < 1e-3 * update_distance(unaware, kind)(*truths).item()


def test_signs_are_compared_with_signs():
    view, truth = observed_client(settings("none", 2, **CNN), photos(0, 2), None)
    victims = stacked(defended(view, transforms="sign"))
    unaware = replace(victims, defense=None)
    truths = truth.encodings[None].requires_grad_(), truth.soft_targets[None]
    aware = update_distance(victims, "cosine")(*truths).item()
    assert aware < 0.3 * update_distance(unaware, "cosine")(*truths).item()


@pytest.mark.parametrize("network", ["mlp", "strided-cnn"])
@pytest.mark.parametrize("images", [1, 3])
def test_one_pass_compares_the_entries_that_were_sent(network, images):
    config = settings("none", images, model__name=network, model__width=8)
    view, _ = observed_client(config, photos(0, images), None)
    victims = stacked(defended(view, transforms="prune"))
    assert fits_one_pass(victims)
    torch.manual_seed(0)
    guess = torch.randn(1, images, 3, 8, 8, requires_grad=True)
    labels = torch.rand(1, images, 10, requires_grad=True)
    updates = simulated_updates(victims, guess, labels)
    sent = {n: a * (victims.updates[n] != 0) for n, a in updates.items()}
    for kind, measure in (("cosine", cosine_distance), ("squared", squared_distance)):
        found = update_distance(victims, kind)(guess, labels)
        right = measure(sent, victims.updates)
        torch.testing.assert_close(found, right)
        for derivative, right_derivative in zip(
            torch.autograd.grad(found.sum(), (guess, labels), retain_graph=True),
            torch.autograd.grad(right.sum(), (guess, labels), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(
                derivative, right_derivative, rtol=1e-3, atol=1e-6
            )


def test_of_a_sum_the_entries_that_any_client_sent_are_compared():
    defense = DefenseConfig(transforms="prune, sign, clip")
    first, second = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    simulated = SimulatedDefense.of(defense, clients=2)
    guess = torch.tensor([[5.0, 6.0, 7.0]])
    compared = simulated.apply({"w": guess}, {"w": (first + second) / 2})
    assert compared["w"].tolist() == [[5, 6, 0]]


def error(found, truth):
    """Return the mean error of a reconstruction, relative to the truth's size."""
    (recovered,) = found.recovered
    off = (recovered.images - truth.encodings).abs().mean()
    return float(off / truth.encodings.abs().mean())


@pytest.mark.parametrize(
    "defense",
    [{"transforms": "prune", "prune_share": 0.99}, {"transforms": "sign"}],
    ids=["pruned", "signs"],
)
def test_an_attack_that_knows_the_defence_recovers_more(defense):
    view, truth = observed_client(settings("none", 1, **CNN), photos(0, 4), None)
    view = defended(view, **defense)
    errors = {}
    for adaptive in (True, False):
        attack = InvertingGradients(
            iterations=150, total_variation=0.03, adaptive=adaptive
        )
        found = attack.reconstruct(view, np.random.default_rng(0), ignore_progress)
        assert found.adaptation["used"] is adaptive
        errors[adaptive] = error(found, truth)
    assert errors[True] < 0.8 * errors[False]


def test_deep_leakage_matches_the_entries_that_were_sent():
    config = settings(
        "none", 1, model__name="strided-lenet", model__activation="sigmoid"
    )
    view, truth = observed_client(config, photos(0, 1), None)
    view = defended(view, transforms="prune, clip", prune_share=0.5, clip_norm=0.1)
    found = ImprovedDeepLeakage(iterations=30, restarts=1).reconstruct(
        view, np.random.default_rng(0), ignore_progress
    )
    assert found.recovered[0].diagnostics["distance"] < 1e-6
    assert error(found, truth) < 0.05


def test_the_weight_of_the_prior_is_tried_on_public_images_unless_it_is_stated():
    plain, _ = observed_client(settings("none", 1, **CNN), photos(0, 1), None)
    view = defended(plain, transforms="prune", prune_share=0.99)

    def weight(view, **changes):
        attack = InvertingGradients(iterations=20, **changes)
        found = attack.reconstruct(view, np.random.default_rng(0), ignore_progress)
        chosen = found.adaptation
        return chosen["total_variation"], chosen["total_variation_from"], found

    first, origin, found = weight(view)
    assert origin == "public images"
    assert first in map(float, found.adaptation["public_correlations"])
    assert weight(view)[0] == first
    assert weight(plain)[:2] == (0.01, "default")
    assert weight(view, adaptive=False)[:2] == (0.01, "default")
    stated, origin, again = weight(view, total_variation=first)
    assert (stated, origin) == (first, "setting")
    assert torch.equal(again.recovered[0].images, found.recovered[0].images)


def test_without_public_images_of_the_shape_the_weight_is_the_default():
    narrow = PrivateSplit(photos(0, 1).images[..., :6], torch.zeros(1).long(), 10)
    view, _ = observed_client(settings("none", 1, model__name="mlp"), narrow, None)
    found = InvertingGradients(iterations=2).reconstruct(
        defended(view, transforms="prune"), np.random.default_rng(0), ignore_progress
    )
    assert found.adaptation["total_variation_from"] == "default"


@given(st.integers(1, 7), st.data())
def test_climbing_ends_at_the_maximum(count, data):
    peak = data.draw(st.integers(0, count - 1))
    scores = {float(i): -abs(i - peak) for i in range(count)}
    tried = climb(scores.__getitem__, list(scores))
    assert max(tried, key=tried.__getitem__) == peak


def labelled(method, start, **defense):
    """Return the largest error of a recovered soft label, and the error it states."""
    few, pool = photos(start, start + 8), MixingPool.photos(8, 3)
    view, truth = observed_client(settings(method, 1, **CNN), few, pool)
    view = defended(view, **defense)
    (found,) = (
        SoftLabels()
        .reconstruct(view, np.random.default_rng(0), ignore_progress)
        .recovered
    )
    off = (found.soft_targets - truth.soft_targets).abs().max()
    return float(off), found.diagnostics["label_error"]


@pytest.mark.parametrize(
    ("method", "defense", "stated"),
    [
        ("inside", {"transforms": "clip, noise", "noise_multiplier": 1e-3}, 0.01),
        ("inside", {"transforms": "clip, noise", "noise_multiplier": 1e-2}, 0.1),
        ("inside", {"transforms": "clip", "clip_norm": 0.1}, 1e-4),
        ("none", {"transforms": "prune", "prune_share": 0.9}, 1e-3),
        ("inside", {"transforms": "prune", "prune_share": 0.99}, 0.15),
        ("cross", {"transforms": "prune", "prune_share": 0.5}, 1e-3),
        # Neither the factor of clipping nor the label's sum is known.
        ("cross", {"transforms": "clip, noise", "noise_multiplier": 1e-3}, 0.3),
    ],
)
def test_a_soft_label_is_estimated_behind_a_defence_with_its_error(
    method, defense, stated
):
    for start in (0, 8, 16):
        off, label_error = labelled(method, start, **defense)
        assert off <= 3 * label_error + 1e-6
        assert label_error < stated


def test_a_soft_label_cannot_be_read_off_signs():
    with pytest.raises(AttackError, match="use hard_labels"):
        labelled("inside", 0, transforms="sign")


@given(st.integers(0, 99), st.floats(0.05, 1))
def test_the_ratio_of_absent_classes_gives_scale_and_label(seed, scale):
    rng = np.random.default_rng(seed)
    prediction = torch.from_numpy(rng.dirichlet(np.ones(10)))
    label = torch.zeros(10, dtype=torch.float64)
    label[torch.from_numpy(rng.choice(10, 2, replace=False))] = 0.5
    exact = torch.full((10,), 1e-9, dtype=torch.float64)
    gradient = scale * (prediction - label)
    fit = LogitGradient(gradient, exact, prediction, exact)
    estimate = estimate_label(fit, scaled=True, weight_range=(1, 1), num_private=4)
    torch.testing.assert_close(estimate.label, label, rtol=0, atol=1e-6)


def local_training(images, batch_size, epochs, labels_known, learning_rate=0.1):
    """Return the view and the truth of a client that trained for some epochs."""
    changes = {"train__mode": "update", "train__local_epochs": epochs}
    config = settings(
        "none",
        batch_size,
        model__name="mlp",
        model__width=8,
        train__learning_rate=learning_rate,
        data__augment="none",
        **changes,
    )
    view, truth = observed_client(config, photos(0, images), None)
    if labels_known:
        (observation,) = view.observations
        known = replace(observation, soft_targets=truth.soft_targets)
        view = replace(view, observations=(known,))
    return view, truth


def test_epochs_that_share_images_give_the_same_update_as_their_places():
    view, truth = local_training(images=4, batch_size=2, epochs=3, labels_known=False)
    model = training_network(view.config, view.image_shape, view.num_classes)
    places = stack_victims(view, model, view.observations, CPU)
    shared = places.with_shared_images(3)
    assert shared.steps.images == 4
    assert shared.steps.has_orders
    steps = shared.steps.reordered(np.random.default_rng(0))
    assert steps.rows[:4] == (0, 1, 2, 3)
    assert [sorted(steps.rows[a : a + 4]) for a in (4, 8)] == [[0, 1, 2, 3]] * 2
    images, labels = truth.encodings[:4][None], truth.soft_targets[:4][None]
    rows = list(steps.rows)
    found = simulated_updates(replace(shared, steps=steps), images, labels)
    right = simulated_updates(places, images[:, rows], labels[:, rows])
    for name, array in right.items():
        torch.testing.assert_close(found[name], array)


@pytest.mark.parametrize(
    ("images", "batch_size", "labels_known", "learning_rate"),
    [(2, 8, True, 0.3), (4, 2, False, 0.1)],
)
def test_local_steps_that_are_repeated_give_more_than_one_step_in_their_place(
    images, batch_size, labels_known, learning_rate
):
    view, truth = local_training(images, batch_size, 4, labels_known, learning_rate)
    errors = {}
    for local_steps in ("unrolled", "one-step"):
        attack = InvertingGradients(iterations=150, local_steps=local_steps)
        found = attack.reconstruct(view, np.random.default_rng(0), ignore_progress)
        (recovered,) = found.recovered
        assert len(recovered.images) == images
        off = torch.cdist(
            recovered.images.flatten(1), truth.encodings[:images].flatten(1), p=1
        )
        errors[local_steps] = off.amin(0).mean()
    assert "local_steps" in found.adaptation
    assert errors["unrolled"] < 0.8 * errors["one-step"]
