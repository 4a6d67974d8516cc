"""Networks trained on own mixtures find signs and public images better than chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from instahide_fl.attacks.base import silent
from instahide_fl.attacks.demasking import Demasking
from instahide_fl.attacks.pool_search.sign_network import SignNetwork, sign_loss
from instahide_fl.attacks.pool_search.training_mixtures import own_mixtures
from instahide_fl.audit.scoring.score_reconstruction import score
from instahide_fl.audit.scoring.sign_scores import SignScores
from instahide_fl.errors import AttackError
from tests.library.test_pool_search import holder_of, photos, scored, searched

__all__ = ["photos"]


def demasked(view, **changes):
    return Demasking(**changes).reconstruct(view, np.random.default_rng(1), silent)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 15, 13)])
def test_log_odds_have_the_shape_of_the_image(shape):
    assert SignNetwork(shape[0])(torch.rand(2, *shape)).shape == (2, *shape)


def test_the_negative_of_a_mixture_is_as_right(rng):
    mixed = torch.from_numpy(rng.standard_normal((4, 3, 8, 8), np.float32))
    odds = torch.from_numpy(rng.standard_normal((4, 3, 8, 8), np.float32))
    assert sign_loss(odds, mixed) == pytest.approx(float(sign_loss(-odds, mixed)))
    assert SignScores.of(-mixed, mixed).right.tolist() == [1.0] * 4
    random = SignScores.of(odds, mixed).right
    assert 0.5 <= float(random.mean()) < 0.6


def test_own_mixtures_are_those_of_an_encoder_without_signs(photos, rng):
    view, _ = holder_of(photos)
    own = own_mixtures(view, "", "demasking.proxy")
    mixed, key = own.draw(3, rng)
    pixels = view.pool.statistics.normalise(view.pool.images)
    sources = torch.cat([key.private_index, key.public_index], dim=1)
    expected = (key.coefficients[:, :, None, None, None] * pixels[sources]).sum(dim=1)
    assert torch.allclose(mixed, expected, atol=1e-5)


def test_training_teaches_signs(photos):
    view, _ = holder_of(photos, count=1)
    losses = [
        demasked(view, steps=steps, batch_size=16).diagnostics["training_loss"]
        for steps in (1, 30)
    ]
    assert losses[1] < 0.85 * losses[0]


@pytest.mark.slow
def test_signs_are_guessed_better_than_by_a_constant(photos, rng):
    view, truth = holder_of(photos, mixed=3)
    found = demasked(view, steps=500, batch_size=32)
    scores = score(found, {(1, "0"): truth}, view.statistics, 2, rng)
    signs = scores.signs
    assert signs.right.mean() > signs.constant.mean() + 0.01
    assert signs.weighted.mean() > signs.constant_weighted.mean() + 0.01


def test_a_learned_score_finds_public_images(photos, rng):
    view, truth = holder_of(photos)
    found = searched(view, score="learned", steps=40, batch_size=32)
    components = scored(found, view, truth, rng).components
    assert set(components) == {"correlation", "learned"}
    assert components["learned"].beats_chance
    assert components["learned"].largest() > components["correlation"].largest()


def test_the_same_seed_gives_the_same_signs(photos):
    view, _ = holder_of(photos, count=3)
    first, second = (demasked(view, steps=2, batch_size=4) for _ in range(2))
    assert torch.equal(first.recovered[0].images, second.recovered[0].images)


@pytest.mark.parametrize("method", ["none", "mixup-cross"])
def test_runs_without_a_mask_are_refused(photos, method):
    view, _ = holder_of(photos, method)
    with pytest.raises(AttackError, match="hides none"):
        demasked(view)


def test_without_a_pool_a_proxy_is_asked_for(photos):
    view, _ = holder_of(photos, "inside")
    with pytest.raises(AttackError, match=r"demasking\.proxy"):
        demasked(view)


def test_a_proxy_of_other_images_is_refused(photos):
    view, _ = holder_of(photos)
    with pytest.raises(AttackError, match="1x16x16"):
        demasked(view, proxy="noise:50x1x16x16")


def test_mixtures_are_scored_against_their_own_encoding(photos, rng):
    view, truth = holder_of(photos, count=6)
    found = demasked(view, steps=1, batch_size=2)
    exact = truth.encodings * truth.key.signs
    one = replace(found.recovered[0], images=exact)
    perfect = replace(found, recovered=(one,))
    scores = score(perfect, {(1, "0"): truth}, view.statistics, 2, rng)
    assert float(scores.signs.right.min()) == 1.0
    assert scores.encoding.attack.sign_ssim.mean == pytest.approx(1.0)
