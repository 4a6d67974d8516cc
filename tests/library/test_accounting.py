"""Epsilon: Opacus' figure, known settings, and where there is none."""

from __future__ import annotations

import math
import re

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from instahide_fl.config import Config
from instahide_fl.defenses.accounting import (
    Mechanism,
    _renyi_divergence,
    gaussian_epsilon,
    privacy_loss,
    released,
    tight_epsilon,
)
from instahide_fl.defenses.planned_privacy import (
    check_target_epsilon,
    epsilon_by_client,
    exposed_clients,
    exposed_clients_in_words,
    planned_loss,
    with_target_epsilon,
)
from instahide_fl.errors import ConfigError


def config_of(kind, **changes):
    dotted = {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}
    return Config().with_values(
        {
            "defense.differential-privacy": kind,
            "server.aggregation": "mean",
            "instahide.method": "none",
            **dotted,
        }
    )


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.1, 0.02, 300), (0.8, 1.0, 7)])
def test_it_is_what_opacus_says(noise, rate, steps):
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise, sample_rate=rate)
    expected = accountant.get_epsilon(1e-5)
    assert gaussian_epsilon(noise, rate, steps, 1e-5) == pytest.approx(expected)


def test_a_known_setting():
    """Abadi et al. 2016, section 5.1: q = 0.01, sigma = 4, 10,000 steps: 1.26.

    Their moments accountant converts less tightly, so today's figure is a bit smaller.
    """
    epsilon = gaussian_epsilon(4.0, 0.01, 10_000, 1e-5)
    assert 0.9 < epsilon < 1.26


def exact_epsilon(noise):
    """Balle and Wang 2018, theorem 8: the exact delta of the Gaussian mechanism."""

    def delta(epsilon):
        a, b = 1 / (2 * noise), epsilon * noise
        return norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b) - 1e-5

    return brentq(delta, 0, 50)


@pytest.mark.parametrize("noise", [0.7, 1.0, 4.0])
def test_one_release_is_bounded_by_its_exact_figure_from_below(noise):
    exact = exact_epsilon(noise)
    assert exact <= gaussian_epsilon(noise, 1.0, 1, 1e-5) < 1.25 * exact


def test_the_bound_grows_with_steps_and_rate_and_falls_with_noise():
    base = gaussian_epsilon(1.0, 0.1, 100, 1e-5)
    assert gaussian_epsilon(1.0, 0.1, 101, 1e-5) > base
    assert gaussian_epsilon(1.0, 0.11, 100, 1e-5) > base
    assert gaussian_epsilon(1.1, 0.1, 100, 1e-5) < base
    assert gaussian_epsilon(1.0, 0.1, 0, 1e-5) == 0


def loss_of(config, sizes, took_part, rounds=50):
    spent = released(config, sizes, took_part, rounds)
    return privacy_loss(config, spent.values())


def test_the_client_that_lost_most_counts():
    config = config_of("dp-sgd", train__batch_size=10)
    loss = loss_of(config, {"a": 100, "b": 400}, {"a": 50, "b": 60})
    assert loss.epsilon == gaussian_epsilon(1.0, 0.1, 50, 1e-5)
    assert (loss.unit, loss.delta, loss.absent) == ("example", 1e-5, "")
    tiny = loss_of(config, {"a": 4}, {"a": 3})
    assert tiny.epsilon == gaussian_epsilon(1.0, 1.0, 3, 1e-5)
    local_steps = config_of("dp-sgd", train__batch_size=10, train__mode="update")
    update = loss_of(local_steps, {"a": 100}, {"a": 3})
    assert update.epsilon == gaussian_epsilon(1.0, 0.1, 30, 1e-5)


def test_no_figure_where_it_would_not_be_about_private_images():
    clients = ({"a": 100}, {"a": 50})
    for method in ("mixup", "instahide"):
        loss = loss_of(config_of("dp-sgd", instahide__method=method), *clients)
        assert loss.epsilon is None
        assert "no formal guarantee for private images" in loss.absent
    alone = config_of("dp-sgd", instahide__method="mixup", instahide__num_private=1)
    assert loss_of(alone, *clients).epsilon is not None
    silent = config_of("dp-sgd", defense__noise_multiplier=0.0)
    assert "noise-multiplier is 0" in loss_of(silent, *clients).absent
    weak = config_of("dp-sgd", defense__noise_multiplier=1e-200)
    assert "no finite epsilon" in loss_of(weak, *clients).absent


def test_client_level_losses():
    central = config_of(
        "central", instahide__method="instahide", train__clients_per_round=2
    )
    ten = dict.fromkeys(map(str, range(10)), 100)
    assert loss_of(central, ten, {}, 30).epsilon == gaussian_epsilon(1.0, 0.2, 30, 1e-5)
    noisy = config_of("local", defense__noise_multiplier=4.0)
    local = loss_of(noisy, {"a": 10, "b": 9}, {"a": 5, "b": 4})
    # Two updates of one client may be twice the norm apart.
    assert local.epsilon == gaussian_epsilon(2.0, 1.0, 5, 1e-5)
    assert local.per_release == gaussian_epsilon(2.0, 1.0, 1, 1e-5)
    assert local.unit == "client"


@pytest.mark.parametrize(
    ("noise", "rate", "steps"), [(1.0, 0.05, 100), (4.0, 0.01, 10_000), (2.0, 1.0, 5)]
)
def test_the_tight_epsilon_lies_between_what_is_exact_and_what_renyi_says(
    noise, rate, steps
):
    """Exact: one Gaussian of this many steps, where every part is in every sample."""
    tight = tight_epsilon(noise, rate, steps, 1e-5)
    renyi = gaussian_epsilon(noise, rate, steps, 1e-5)
    assert tight < renyi
    if rate == 1:
        exact = exact_epsilon(noise / math.sqrt(steps))
        assert exact <= tight < 1.02 * exact + 0.01


def test_where_only_one_accountant_has_a_bound_it_counts():
    assert tight_epsilon(0.1, 1.0, 1000, 1e-5) == gaussian_epsilon(0.1, 1.0, 1000, 1e-5)
    assert tight_epsilon(1.0, 0.1, 0, 1e-5) == 0
    assert tight_epsilon(1e-3, 0.1, 1, 1e-5) == math.inf


@pytest.mark.parametrize("kind", ["central", "local"])
def test_the_noise_for_an_epsilon_is_the_least_that_keeps_it(kind):
    sizes = dict.fromkeys("012", 120)  # one mechanism: the accountant is slow
    config = config_of(
        kind,
        defense__target_epsilon=3.0,
        train__batch_size=10,
        train__rounds=40,
        train__clients_per_round=2 if kind == "central" else 0,
        partition__num_clients=3,
    )
    chosen = with_target_epsilon(config, sizes)
    noise = chosen.defense.noise_multiplier
    assert 2.8 < planned_loss(chosen, sizes).epsilon <= 3.0
    check_target_epsilon(chosen, sizes)
    less = chosen.with_values({"defense.noise-multiplier": 0.98 * noise})
    assert planned_loss(less, sizes).epsilon > 3.0
    with pytest.raises(ConfigError, match=rf"set defense.noise-multiplier = {noise:g}"):
        check_target_epsilon(less, sizes)


def test_an_epsilon_out_of_reach_names_the_nearest():
    sizes = {"0": 10}
    config = config_of("dp-sgd", defense__target_epsilon=1e-3, train__batch_size=10)
    with pytest.raises(ConfigError, match=r"nearest is ([0-9.]+)") as refused:
        with_target_epsilon(config, sizes)
    nearest = float(re.search(r"nearest is ([0-9.]+),", str(refused.value))[1])
    reached = config.with_values({"defense.target-epsilon": nearest})
    assert planned_loss(with_target_epsilon(reached, sizes), sizes).epsilon <= nearest
    hidden = config_of(
        "dp-sgd", defense__target_epsilon=3.0, instahide__method="instahide"
    )
    with pytest.raises(ConfigError, match="no formal guarantee for private images"):
        with_target_epsilon(hidden, sizes)
    with pytest.raises(ConfigError, match=r"needs defense\.differential-privacy"):
        config_of("none", defense__target_epsilon=3.0)


def test_a_client_of_few_images_stands_out():
    sizes = {"0": 10, "1": 400, "2": 500, "3": 450}
    config = config_of("dp-sgd", train__batch_size=16, train__rounds=30)
    epsilons = epsilon_by_client(config, sizes)
    assert exposed_clients(epsilons) == {"0": epsilons["0"]}
    assert epsilons["0"] == gaussian_epsilon(1.0, 1.0, 30, 1e-5)
    assert epsilon_by_client(config_of("none"), sizes) == {}
    (line,) = exposed_clients_in_words(config, sizes)
    assert line.startswith("client 0 (10 images, asked in 30 of 30 rounds) will spend")


def test_the_accountant_is_asked_of_the_clients_that_may_lose_most():
    # A mechanism takes it a tenth of a second, for each noise that is tried.
    sizes = {str(client): 20 + client for client in range(200)}
    config = config_of("dp-sgd", train__batch_size=10, defense__target_epsilon=2.9)
    before = _renyi_divergence.cache_info().misses
    chosen = with_target_epsilon(config.with_values({"train.rounds": 30}), sizes)
    assert _renyi_divergence.cache_info().misses - before < 50
    assert planned_loss(chosen, sizes).epsilon <= 2.9
    noisy = [Mechanism(1.0, 0.1, 30), Mechanism(1.0, 0.05, 200), Mechanism(1.0, 0.1, 5)]
    largest = max(gaussian_epsilon(*mechanism, 1e-5) for mechanism in noisy)
    assert privacy_loss(config, noisy).epsilon == largest


def test_clients_stand_out_among_those_that_take_part():
    # Of ten clients, most never take part in two rounds of two.
    sizes = {str(client): 400 for client in range(10)}
    config = config_of("dp-sgd", train__rounds=2, train__clients_per_round=2)
    epsilons = epsilon_by_client(config, sizes)
    assert sorted(epsilons.values())[5] == 0 < max(epsilons.values())
    assert exposed_clients(epsilons) == {}


def test_one_release_costs_no_more_than_a_run_of_one_round():
    config = config_of("local", defense__noise_multiplier=0.8, train__rounds=1)
    loss = planned_loss(config, {"0": 10})
    assert loss.per_release == loss.epsilon < loss.epsilon_rdp


def test_few_of_many_exposed_clients_are_named():
    sizes = {str(client): 10 if client < 30 else 400 for client in range(80)}
    config = config_of("dp-sgd", train__batch_size=16, train__rounds=30)
    lines = exposed_clients_in_words(config, sizes)
    assert len(lines) == 21
    assert lines[-1] == "and 10 more clients of more than twice the median"


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("dp-sgd", "train.batch-size"),
        ("central", "train.clients-per-round"),
        ("local", r"\(train.rounds = 300\) spend less"),
    ],
)
def test_advice_for_a_smaller_epsilon_fits_the_mechanism(kind, advice):
    config = config_of(kind, defense__target_epsilon=1e-4)
    with pytest.raises(ConfigError, match=advice):
        with_target_epsilon(config, {"0": 10, "1": 10})
