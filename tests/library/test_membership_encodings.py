"""Candidate images are found in encodings, from one encoding and from |e| alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instahide_fl.attacks.base import ignore_progress
from instahide_fl.attacks.magnitudes import shifted_to_zero
from instahide_fl.attacks.membership_encodings import MembershipEncodings
from instahide_fl.attacks.pool_search.attack import PoolSearch
from instahide_fl.audit.candidates import draw_candidates
from instahide_fl.audit.scoring.ground_truth import GroundTruth, asked_about
from instahide_fl.audit.scoring.score_reconstruction import score_reconstruction
from instahide_fl.audit.scoring.verdict import LEAKS, NO_LEAK, verdict
from instahide_fl.config import Config
from instahide_fl.data.datasets import augmentation_for, load_dataset
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import threat_model
from instahide_fl.transcript.truth import RecordingEncoder
from instahide_fl.transcript.view import AdversaryView, Observation
from instahide_fl.types import PrivateSplit
from tests.library.attack_views import settings

HOLDER = threat_model("encodings-holder")


@pytest.fixture(scope="module")
def digits():
    return load_dataset(Config().data)


def holders_view(digits, method="inside", augment="none", rounds=1):
    """Return what a holder of 30 encodings a round asks about, and the truth."""
    config = settings(method, 1, data__augment=augment)
    statistics, shape = digits.train.statistics, digits.image_shape
    split = digits.train.subset(torch.arange(60)).normalised_with(statistics)
    augmentation = augmentation_for(config.data, shape)
    truths, seen = {}, []
    for number in range(1, rounds + 1):
        encoder = RecordingEncoder(build_encoder(config.instahide, None, augmentation))
        encoder.encode(torch.arange(30), split, np.random.default_rng(number))
        truths[number, "0"] = encoder.truth(number, "0", split)
        encodings = truths[number, "0"].encodings
        seen.append(Observation(number, "0", 0, 1.0, "delta", encodings=encodings))
    candidates = draw_candidates(digits, statistics, seed=0)
    truth = GroundTruth(truths, statistics, 10, augmentation, candidates=candidates)
    view = AdversaryView(
        threat_model=HOLDER,
        config=config,
        statistics=statistics,
        image_shape=shape,
        num_classes=10,
        observations=tuple(seen),
        rounds=(),
        pool=None,
        mixed_candidates=asked_about(HOLDER, truth),
    )
    return view, truth


def searched(view, truth, **changes):
    attack = MembershipEncodings(**changes)
    rng = np.random.default_rng(0)
    reconstruction = attack.reconstruct(view, rng, ignore_progress)
    return reconstruction, score_reconstruction(reconstruction, truth, rng)


def with_encodings(view, change):
    observations = [
        replace(observation, encodings=change(observation.encodings))
        for observation in view.observations
    ]
    return replace(view, observations=tuple(observations))


def top_1(scores):
    return scores.membership.identification.decisive.top(1)


def test_candidates_hold_private_images_where_the_scorer_looks(digits):
    view, truth = holders_view(digits)
    mixed, client = truth.mixed_candidates, truth.truths[1, "0"]
    images = view.mixed_candidates.images
    assert torch.equal(images[mixed.located("0", client.rows)], client.images)
    assert torch.equal(
        view.mixed_candidates.targets[mixed.others], truth.candidates.targets
    )
    assert len(images) == len(client.images) + 1000
    assert asked_about(threat_model("honest-server"), truth) is None


@pytest.mark.parametrize("method", ["inside", "mixup", "none"])
def test_one_encoding_tells_which_image_weighs_most(digits, method):
    view, truth = holders_view(digits, method)
    _, scores = searched(view, truth)
    written = scores.to_json()["metrics"]["membership"]
    assert top_1(scores) > 0.5
    assert written["auc"] > 0.75
    assert written["members"] == len(truth.truths[1, "0"].rows)
    assert written["non_members"] == 1000
    assert written["identification"]["1000"]["top1"] == top_1(scores)
    assert verdict(HOLDER, scores) == LEAKS


def test_encodings_of_other_images_name_nobody(digits):
    view, truth = holders_view(digits)
    others = digits.train.subset(torch.arange(100, 160))
    split = others.normalised_with(digits.train.statistics)
    encoder = build_encoder(view.config.instahide, None)
    batch, _ = encoder.encode(torch.arange(30), split, np.random.default_rng(5))
    _, scores = searched(with_encodings(view, lambda _: batch.images), truth)
    assert top_1(scores) < 0.1
    assert verdict(HOLDER, scores) == NO_LEAK


def test_several_encodings_say_more_and_repeated_ones_do_not(digits):
    _, once = searched(*holders_view(digits))
    view, truth = holders_view(digits, rounds=4)
    found, often = searched(view, truth)
    assert often.membership.decided["auc"] > once.membership.decided["auc"] + 0.02
    doubled = replace(view, observations=view.observations * 2)
    again, _ = searched(doubled, truth)
    assert torch.equal(
        again.recovered[0].mixture.together, found.recovered[0].mixture.together
    )


def test_crops_are_searched_for(digits):
    view, truth = holders_view(digits, augment="crop")
    found, scores = searched(view, truth)
    unaware = replace(view, config=view.config.with_values({"data.augment": "none"}))
    _, without = searched(unaware, truth)
    assert found.recovered[0].diagnostics["versions_of_a_candidate"] == 49
    assert top_1(scores) > max(0.3, 2 * top_1(without))


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.3, -0.8), (-2.0, 1.0)])
def test_absolute_values_are_enough_whatever_their_scale(digits, scale, offset):
    view, truth = holders_view(digits)
    _, exact = searched(view, truth)
    known = with_encodings(view, lambda encodings: scale * encodings.abs() + offset)
    _, scores = searched(known, truth, absolute_values=True)
    assert top_1(scores) > top_1(exact) - 0.1
    if offset:
        _, unaware = searched(known, truth)
        assert top_1(unaware) < top_1(scores)


def test_without_candidates_or_encodings_the_attack_says_what_it_lacks(digits):
    view, truth = holders_view(digits)
    with pytest.raises(AttackError, match=r"data\.dataset"):
        searched(replace(view, mixed_candidates=None), truth)
    with pytest.raises(AttackError, match=r"record\.rounds"):
        searched(replace(view, observations=()), truth)


@given(
    scale=st.floats(0.1, 10).flatmap(lambda a: st.sampled_from([a, -a])),
    offset=st.floats(-5, 5),
    seed=st.integers(0, 100),
)
def test_scale_and_offset_of_absolute_values_are_undone(scale, offset, seed):
    rng = np.random.default_rng(seed)
    encodings = torch.from_numpy(rng.standard_normal((2, 3, 32, 32))).abs()
    undone = shifted_to_zero(scale * encodings + offset)
    expected = encodings / encodings.square().mean((1, 2, 3), keepdim=True).sqrt()
    assert torch.allclose(undone, expected, atol=0.02)


@pytest.mark.parametrize("score", ["whitened", "correlation"])
def test_the_pool_is_searched_by_absolute_values_too(score):
    photos = MixingPool.photos(16).sample(700)
    private = PrivateSplit(photos[:100], torch.zeros(100, dtype=torch.int64), 2)
    pool = MixingPool.from_images(photos[100:])
    config = settings("cross", 1, instahide__num_mixed=4, data__augment="none")
    encoder = RecordingEncoder(build_encoder(config.instahide, pool))
    encoder.encode(torch.arange(60), private, np.random.default_rng(0))
    truth = encoder.truth(1, "0", private)
    # Standardised in each image, as a sign-invariant network sees it.
    magnitudes = truth.encodings.abs()
    centred = magnitudes - magnitudes.mean((1, 2, 3), keepdim=True)
    seen = Observation(1, "0", 0, 1.0, "gradient", encodings=centred)
    view = AdversaryView(
        HOLDER, config, private.statistics, (3, 16, 16), 2, (seen,), (), pool
    )
    ground_truth = GroundTruth({(1, "0"): truth}, view.statistics, 2)
    largest = {}
    for known, encodings in (("signs", truth.encodings), ("|e|", centred)):
        one = with_encodings(view, lambda _, encodings=encodings: encodings)
        attack = PoolSearch(score=score, absolute_values=known == "|e|")
        rng = np.random.default_rng(1)
        found = attack.reconstruct(one, rng, ignore_progress)
        scores = score_reconstruction(found, ground_truth, rng)
        largest[known] = scores.components[score].largest()
    assert largest["|e|"] > largest["signs"] - 0.05
