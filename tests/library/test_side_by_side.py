"""Gradients of many victims in one pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from instahide_fl.attacks.inverting_gradients import InvertingGradients
from instahide_fl.attacks.matching.gradient_matching import (
    cosine_distance,
    simulated_updates,
    squared_distance,
)
from instahide_fl.attacks.matching.guess import repeat_victims
from instahide_fl.attacks.matching.memory import memory_of_one
from instahide_fl.attacks.matching.side_by_side import (
    SideBySide,
    _ByPositions,
    _Direct,
    fits_one_pass,
    update_distance,
)
from instahide_fl.attacks.matching.victims import stack_victims, training_network
from instahide_fl.errors import AttackError
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.types import PrivateSplit
from tests.library.attack_views import observed_client, settings

CPU = torch.device("cpu")
SHAPE = (3, 12, 12)
NETWORKS = [
    ("mlp", "none", "relu"),
    ("lenet", "none", "relu"),
    ("small-cnn", "group", "relu"),
    ("strided-cnn", "none", "relu"),
    ("strided-cnn", "group", "softplus"),
    ("strided-cnn", "group", "softplus", True),
    ("strided-lenet", "none", "sigmoid"),
    ("resnet-9", "group", "relu"),
]


def observed(
    images=1,
    model="strided-cnn",
    norm="none",
    activation="relu",
    sign_invariant=False,
    **changes,
):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (images, *SHAPE), generator=generator)
    split = PrivateSplit(pixels.byte(), torch.arange(images) % 10, 10)
    config = settings(
        "none",
        images,
        model__name=model,
        model__normalization=norm,
        model__activation=activation,
        model__width=8,
        model__sign_invariant=sign_invariant,
        **changes,
    )
    view, _ = observed_client(config, split, None)
    return view, training_network(config, SHAPE, 10)


def problems(count, images, *network, **changes):
    """Return victims in float64, to compare closely, and guesses."""
    view, model = observed(images, *network, **changes)
    one = stack_victims(view, model.double(), view.observations, CPU)
    many = repeat_victims(one, count)
    victims = replace(
        many,
        parameters={name: array.double() for name, array in many.parameters.items()},
        updates={name: array.double() for name, array in many.updates.items()},
    )
    generator = torch.Generator().manual_seed(0)
    guess = torch.randn(
        (count, victims.steps.images, *SHAPE), generator=generator, dtype=torch.float64
    )
    labels = torch.rand(
        (count, victims.steps.images, 10), generator=generator, dtype=torch.float64
    )
    return victims, guess.requires_grad_(), labels.requires_grad_()


def one_after_another(victims, images, labels):
    """Compute updates with nothing but autograd."""
    parameters = {name: p.requires_grad_() for name, p in victims.parameters.items()}
    found = []
    for pixels, targets in zip(images, labels, strict=True):
        logits = functional_call(victims.model, parameters, (pixels,))
        loss = soft_cross_entropy(logits, targets)
        found.append(
            torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        )
    return {
        name: torch.stack(arrays)
        for name, arrays in zip(parameters, zip(*found, strict=True), strict=True)
    }


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_one_pass_gives_the_gradients_of_each_victim_and_their_derivatives(
    network, images
):
    victims, guess, labels = problems(2, images, *network)
    assert fits_one_pass(victims)
    together = SideBySide(victims)
    found, wanted = (
        together.updates(guess, labels),
        one_after_another(victims, guess, labels),
    )
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        torch.testing.assert_close(found[name], array)
    for value, right in [
        (
            together.cosine_distance(guess, labels),
            cosine_distance(wanted, victims.updates),
        ),
        (
            update_distance(victims, "squared")(guess, labels),
            squared_distance(wanted, victims.updates),
        ),
    ]:
        torch.testing.assert_close(value, right)
        weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
        derivatives, right_derivatives = (
            torch.autograd.grad(one @ weights, (guess, labels), retain_graph=True)
            for one in (value, right)
        )
        for derivative, right_derivative in zip(
            derivatives, right_derivatives, strict=True
        ):
            torch.testing.assert_close(
                derivative, right_derivative, rtol=1e-6, atol=1e-9
            )


@pytest.mark.parametrize("positions", [1, 4])
def test_both_ways_to_the_products_have_the_right_derivatives(positions):
    torch.manual_seed(0)
    factors = [
        torch.randn(2, positions, size, dtype=torch.float64, requires_grad=True)
        for size in (3, 5)
    ]
    wanted = torch.randn(2, 3, 5, dtype=torch.float64)
    for way in (_Direct, _ByPositions):
        assert torch.autograd.gradcheck(way.apply, (*factors, wanted))
    one, two = (way.apply(*factors, wanted) for way in (_Direct, _ByPositions))
    torch.testing.assert_close(one, two)


def test_vmap_stays_where_one_pass_would_be_wrong():
    victims, *_ = problems(2, 1)
    assert fits_one_pass(victims)
    each = {
        name: torch.stack([array] * 2) for name, array in victims.parameters.items()
    }
    grouped = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3))
    reflected = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"))
    bilinear = nn.Bilinear(2, 2, 2)
    blind = nn.BatchNorm2d(3, affine=False)
    for other in [
        replace(victims, parameters=each, shared=False),
        problems(2, 2, train__mode="update")[0],
        problems(2, 2, "strided-cnn", "batch")[0],
        *(replace(victims, model=one) for one in (grouped, reflected, bilinear, blind)),
    ]:
        assert not fits_one_pass(other)


def test_vmap_gives_the_same_for_the_network_that_lays_images_out_anew():
    victims, guess, labels = problems(2, 2, "small-cnn")
    found = simulated_updates(victims, guess, labels)
    for name, array in one_after_another(victims, guess, labels).items():
        torch.testing.assert_close(found[name], array)


class InPlace(nn.Module):
    """Overwrites what its layers gave, as networks of torchvision do."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 10)

    def forward(self, images):
        features = torch.relu_(self.norm(self.first(images)))
        more = self.second(features)
        more += features
        return self.head(torch.relu_(more).mean((2, 3)))


class Twice(InPlace):
    """Calls a layer twice."""

    def forward(self, images):
        features = self.first(images)
        return self.head(self.second(self.second(self.norm(features))).mean((2, 3)))


def with_network(victims, model):
    torch.manual_seed(0)
    sent = {name: p.detach() for name, p in model.double().named_parameters()}
    count = len(victims)
    updates = {name: torch.randn(count, *p.shape).double() for name, p in sent.items()}
    return replace(victims, model=model, parameters=sent, updates=updates)


@pytest.mark.parametrize("geometry", [{"stride": 3}, {"dilation": 2}, {"padding": 2}])
def test_convolutions_of_other_geometries_are_those_of_torch(geometry):
    victims, guess, labels = problems(2, 2)
    model = InPlace()
    model.first = nn.Conv2d(3, 4, (3, 2), bias=False, **geometry)
    victims = with_network(victims, model)
    found = SideBySide(victims).cosine_distance(guess, labels)
    right = one_after_another(victims, guess, labels)
    wanted = cosine_distance(right, victims.updates)
    torch.testing.assert_close(found, wanted)
    for derivative, right_derivative in zip(
        torch.autograd.grad(found.sum(), (guess, labels)),
        torch.autograd.grad(wanted.sum(), (guess, labels)),
        strict=True,
    ):
        torch.testing.assert_close(derivative, right_derivative)


def test_a_layer_that_is_called_twice_does_not_give_a_wrong_gradient():
    victims, guess, labels = problems(2, 2)
    twice = SideBySide(with_network(victims, Twice()))
    with pytest.raises(AttackError, match="calls its layer second 2 times"):
        twice.updates(guess, labels)


def test_fewer_victims_are_side_by_side_where_memory_would_not_do(monkeypatch):
    view, model = observed(8, "resnet-18", "group")
    (one,) = view.observations
    small = memory_of_one(model, SHAPE, replace(one, batch_sizes=(1,)))
    assert 4 * small < memory_of_one(model, SHAPE, replace(one, batch_sizes=(8,) * 3))

    view, model = observed()
    both = tuple(replace(view.observations[0], client=str(i)) for i in range(2))
    view = replace(view, observations=both)
    totals = []
    limit = "instahide_fl.attacks.inverting_gradients.MAX_MEMORY"
    for memory in (4 * 10**9, 1):
        monkeypatch.setattr(limit, memory)
        InvertingGradients(iterations=2).reconstruct(
            view, np.random.default_rng(0), lambda _, total: totals.append(total)
        )
    assert sorted(set(totals)) == [2, 4]
