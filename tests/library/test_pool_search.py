"""Public images in encodings are found in their pool, and scored against the keys."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from instahide_fl.attacks import whitening
from instahide_fl.attacks.base import (
    RankedComponents,
    Reconstruction,
    Recovered,
    ignore_progress,
)
from instahide_fl.attacks.pool_search import pool_ranking
from instahide_fl.attacks.pool_search.attack import PoolSearch
from instahide_fl.attacks.pool_search.pool_ranking import (
    Comparison,
    correlation_embedding,
    rank_pool,
)
from instahide_fl.attacks.pool_search.training_mixtures import own_mixtures
from instahide_fl.attacks.whitening import Whitening
from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.audit.scoring.public_image_scores import score_components
from instahide_fl.audit.scoring.score_reconstruction import score_reconstruction
from instahide_fl.audit.scoring.verdict import LEAKS, NO_LEAK, verdict
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.errors import AttackError, PoolError, ShapeError
from instahide_fl.transcript.threat_model import threat_model
from instahide_fl.transcript.truth import RecordingEncoder
from instahide_fl.transcript.view import AdversaryView, Observation
from instahide_fl.types import ChannelStatistics, PrivateSplit
from tests.library.attack_views import settings

HOLDER = threat_model("encodings-holder")


@pytest.fixture(scope="module")
def photos():
    """Patches of photographs, 16 pixels wide, private and public ones."""
    return MixingPool.photos(16).sample(700)


def holder_of(photos, method="cross", mixed=4, count=60):
    """Return what a holder of encodings has, and the truth."""
    private = PrivateSplit(photos[:100], torch.zeros(100, dtype=torch.int64), 2)
    pool = MixingPool.from_images(photos[100:])
    changes = {"instahide__num_mixed": mixed, "data__augment": "none"}
    config = settings(method, 1, **changes)
    encoder = RecordingEncoder(build_encoder(config.instahide, pool))
    encoder.encode(torch.arange(count), private, np.random.default_rng(0))
    truth = encoder.truth(1, "0", private)
    seen = Observation(1, "0", 0, 1.0, "gradient", encodings=truth.encodings)
    used = pool if config.instahide.uses_pool else None
    view = AdversaryView(
        HOLDER, config, private.statistics, (3, 16, 16), 2, (seen,), (), used
    )
    return view, truth


def searched(view, **changes):
    attack = PoolSearch(**changes)
    return attack.reconstruct(view, np.random.default_rng(1), ignore_progress)


def scored(found, view, truth, rng):
    ground_truth = GroundTruth({(1, "0"): truth}, view.statistics, 2)
    return score_reconstruction(found, ground_truth, rng)


def ranking_scores(truths, *recovered):
    """Score rankings of the pool alone."""
    ground_truth = GroundTruth(truths, ChannelStatistics((0,) * 3, (1,) * 3), 2)
    reconstruction = Reconstruction("components", recovered)
    return score_components(ground_truth.recovered_clients(reconstruction))


@pytest.mark.parametrize("ignore_signs", [True, False])
def test_ranking_by_chunks_and_blocks_is_that_of_all_correlations(
    rng, monkeypatch, ignore_signs
):
    pool = MixingPool.from_images(
        torch.from_numpy(rng.integers(0, 256, (53, 3, 6, 6), dtype=np.uint8))
    )
    encodings = torch.from_numpy(rng.standard_normal((7, 3, 6, 6), np.float32))
    monkeypatch.setattr(pool_ranking, "VALUES_PER_CHUNK", 10 * 108)
    monkeypatch.setattr(pool_ranking, "ENCODINGS_PER_BLOCK", 3)
    embed = correlation_embedding(ignore_signs)
    steps = []
    way = Comparison(embed(encodings), embed)
    found = rank_pool(way, pool, 12, lambda *at: steps.append(at))

    public = pool.statistics.normalise(pool.images).flatten(1)
    both = torch.cat([encodings.flatten(1), public])
    dense = np.corrcoef((both.abs() if ignore_signs else both).numpy())[:7, 7:]
    assert np.array_equal(found.index, np.argsort(-dense, axis=1)[:, :12])
    assert np.allclose(found.scores, -np.sort(-dense, axis=1)[:, :12], atol=1e-5)
    assert steps[-1] == (53, 53)
    assert len(steps) == 6


def test_a_pool_smaller_than_the_ranking_is_ranked_whole(rng, pool):
    embed = correlation_embedding(False)
    queries = embed(torch.from_numpy(rng.standard_normal((2, 3, 8, 8), np.float32)))
    found = rank_pool(Comparison(queries, embed), pool, 100, ignore_progress)
    assert found.index.sort(dim=1).values.tolist() == [list(range(len(pool)))] * 2


@pytest.mark.parametrize(("mixed", "share"), [(4, 0.3), (6, 0.2)])
def test_public_images_are_found_under_signs(photos, rng, mixed, share):
    view, truth = holder_of(photos, mixed=mixed)
    scores = scored(searched(view), view, truth, rng)
    found = scores.components["correlation"]
    assert found.largest() > share > 10 * found.chance(10)
    assert verdict(HOLDER, scores) == LEAKS
    json.dumps(scores.to_json(), allow_nan=False)


def test_without_signs_they_are_found_more_often(photos, rng):
    shares = []
    for method in ("cross", "mixup-cross"):
        view, truth = holder_of(photos, method)
        found = scored(searched(view), view, truth, rng).components["correlation"]
        shares.append(found.largest())
    assert shares[1] > shares[0] + 0.1


def test_random_rankings_are_no_leak(photos, rng):
    view, truth = holder_of(photos)
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(600), (60, 1)), axis=1))
    ranked = RankedComponents(order[:, :100], torch.zeros(60, 100), 600)
    one = Recovered("0", 1, components={"correlation": ranked})
    scores = scored(Reconstruction("components", (one,)), view, truth, rng)
    assert verdict(HOLDER, scores) == NO_LEAK


def test_scores_count_the_true_public_images_by_weight(photos):
    _view, truth = holder_of(photos, count=3)
    public = truth.key.public_index
    largest = truth.key.coefficients[:, 2:].argmax(dim=1)
    other = torch.full((3, 100), -1)
    other[0, 0] = public[0, largest[0]]  # first
    other[1, 20] = public[1, largest[1]]  # not among the first ten
    other[2, 5] = public[2, 1 - largest[2]]  # the smaller one
    ranked = RankedComponents(other, torch.zeros(3, 100), 600)
    one = Recovered("0", 1, components={"correlation": ranked})
    found = ranking_scores({(1, "0"): truth}, one)
    scores = found["correlation"]
    assert scores.largest() == pytest.approx(1 / 3)
    assert scores.recall(1) == pytest.approx(1 / 6)
    assert scores.recall(10) == pytest.approx(2 / 6)
    assert scores.recall(100) == pytest.approx(3 / 6)
    assert scores.chance(10) == pytest.approx(10 / 600)


def test_encodings_that_are_sent_again_count_once(photos):
    _view, truth = holder_of(photos, count=5)
    ranked = RankedComponents(torch.zeros(5, 100).long(), torch.zeros(5, 100), 600)
    rounds = [Recovered("0", r, components={"correlation": ranked}) for r in (1, 2)]
    truths = {(1, "0"): truth, (2, "0"): replace(truth, round=2)}
    found = ranking_scores(truths, *rounds)
    assert found["correlation"].encodings == 5


def test_fewer_rankings_than_encodings_are_an_error(photos):
    _view, truth = holder_of(photos, count=5)
    ranked = RankedComponents(torch.zeros(4, 100).long(), torch.zeros(4, 100), 600)
    one = Recovered("0", 1, components={"correlation": ranked})
    with pytest.raises(ShapeError, match="5 encodings need as many rankings, got 4"):
        ranking_scores({(1, "0"): truth}, one)


@pytest.mark.parametrize("method", ["none", "inside"])
def test_runs_without_public_images_are_refused(photos, method):
    view, _ = holder_of(photos, method)
    with pytest.raises(AttackError, match=r"do not mix .* instahide\.scope"):
        searched(view)


def test_a_pool_of_another_shape_is_refused(photos, pool):
    view, _ = holder_of(photos)
    with pytest.raises(PoolError, match="3x8x8"):
        searched(replace(view, pool=pool))


@pytest.mark.parametrize("method", ["cross", "mixup-cross"])
def test_whitening_finds_more_than_plain_correlation(photos, rng, method):
    view, truth = holder_of(photos, method, mixed=6)
    found = scored(searched(view), view, truth, rng).components
    assert found["whitened"].largest() > found["correlation"].largest() + 0.15


def test_large_images_are_averaged_down_before_whitening(monkeypatch, photos, rng):
    monkeypatch.setattr(whitening, "MAX_FEATURES", 200)
    view, truth = holder_of(photos)
    assert Whitening.of_pool(view.pool, True, rng).mean.shape == (3 * 8 * 8,)
    found = scored(searched(view), view, truth, rng).components
    assert found["whitened"].beats_chance


def test_own_mixtures_are_those_of_an_encoder_without_signs(photos, rng):
    view, _ = holder_of(photos)
    mixed, key = own_mixtures(view, view.pool, "").draw(3, rng)
    pixels = view.pool.statistics.normalise(view.pool.images)
    sources = torch.cat([key.private_index, key.public_index], dim=1)
    expected = (key.coefficients[:, :, None, None, None] * pixels[sources]).sum(dim=1)
    assert torch.allclose(mixed, expected, atol=1e-5)


def test_a_learned_score_finds_public_images(photos, rng):
    view, truth = holder_of(photos)
    reconstruction = searched(view, score="learned", steps=40, batch_size=32)
    components = scored(reconstruction, view, truth, rng).components
    assert set(components) == {"correlation", "learned"}
    assert components["learned"].beats_chance
    assert components["learned"].largest() > components["correlation"].largest()


def test_the_same_seed_gives_the_same_learned_ranking(photos):
    view, _ = holder_of(photos, count=3)
    first, second = (
        searched(view, score="learned", steps=2, batch_size=4).recovered[0].components
        for _ in range(2)
    )
    assert torch.equal(first["learned"].index, second["learned"].index)


def test_a_proxy_of_other_images_is_refused(photos):
    view, _ = holder_of(photos)
    with pytest.raises(AttackError, match="1x16x16"):
        searched(view, score="learned", proxy="noise:50x1x16x16")
