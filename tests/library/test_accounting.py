"""Epsilon: Opacus' figure, known settings, and where there is none."""

from __future__ import annotations

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from instahide_fl.config import Config
from instahide_fl.defenses.accounting import (
    central_loss,
    example_loss,
    gaussian_epsilon,
    local_loss,
)


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


@pytest.mark.parametrize("noise", [0.7, 1.0, 4.0])
def test_one_release_is_bounded_by_its_exact_figure_from_below(noise):
    """Balle and Wang 2018, theorem 8: the exact delta of the Gaussian mechanism."""

    def delta(epsilon):
        a, b = 1 / (2 * noise), epsilon * noise
        return norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b) - 1e-5

    exact = brentq(delta, 0, 50)
    assert exact <= gaussian_epsilon(noise, 1.0, 1, 1e-5) < 1.25 * exact


def test_the_bound_grows_with_steps_and_rate_and_falls_with_noise():
    base = gaussian_epsilon(1.0, 0.1, 100, 1e-5)
    assert gaussian_epsilon(1.0, 0.1, 101, 1e-5) > base
    assert gaussian_epsilon(1.0, 0.11, 100, 1e-5) > base
    assert gaussian_epsilon(1.1, 0.1, 100, 1e-5) < base
    assert gaussian_epsilon(1.0, 0.1, 0, 1e-5) == 0


def test_the_client_that_lost_most_counts():
    config = config_of("dp-sgd", train__batch_size=10)
    loss = example_loss(config, {100: 50, 400: 60}, {100: 1, 400: 1})
    assert loss.epsilon == gaussian_epsilon(1.0, 0.1, 50, 1e-5)
    assert (loss.unit, loss.delta, loss.absent) == ("example", 1e-5, "")
    tiny = example_loss(config, {4: 3}, {4: 1})
    assert tiny.epsilon == gaussian_epsilon(1.0, 1.0, 3, 1e-5)


def test_no_figure_where_it_would_not_be_about_private_images():
    sizes = ({100: 50}, {100: 1})
    for method in ("mixup", "instahide"):
        loss = example_loss(config_of("dp-sgd", instahide__method=method), *sizes)
        assert loss.epsilon is None
        assert "no formal guarantee for private images" in loss.absent
    alone = config_of("dp-sgd", instahide__method="mixup", instahide__num_private=1)
    assert example_loss(alone, *sizes).epsilon is not None
    silent = config_of("dp-sgd", defense__noise_multiplier=0.0)
    assert "noise-multiplier is 0" in example_loss(silent, *sizes).absent
    weak = config_of("dp-sgd", defense__noise_multiplier=1e-200)
    assert "no finite epsilon" in example_loss(weak, *sizes).absent


def test_client_level_losses():
    central = config_of("central", instahide__method="instahide")
    assert central_loss(central, 0.2, 30).epsilon == gaussian_epsilon(
        1.0, 0.2, 30, 1e-5
    )
    local = local_loss(config_of("local", defense__noise_multiplier=4.0), 5)
    # Two updates of one client may be twice the norm apart.
    assert local.epsilon == gaussian_epsilon(2.0, 1.0, 5, 1e-5)
    assert local.per_release == gaussian_epsilon(2.0, 1.0, 1, 1e-5)
    assert local.unit == "client"
