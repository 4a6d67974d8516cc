"""Whether reconstructions identify their image among many that nobody trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instahide_fl.attacks.base import Reconstruction, Recovered
from instahide_fl.audit.candidates import draw_candidates
from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.audit.scoring.score_reconstruction import score_reconstruction
from instahide_fl.audit.scoring.verdict import (
    LEAKS,
    NO_LEAK,
    folded_beats,
    similarity_beats,
    verdict,
)
from instahide_fl.config import Config, EncoderConfig
from instahide_fl.data.datasets import load_dataset
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.metrics.candidates import chance_of_rank, ranks_among
from instahide_fl.metrics.intervals import bootstrap_interval, clopper_pearson
from instahide_fl.transcript.threat_model import threat_model
from instahide_fl.transcript.truth import RecordingEncoder

SERVER = threat_model("honest-server")


@pytest.fixture(scope="module")
def digits():
    return load_dataset(Config().data)


@pytest.fixture(scope="module")
def candidates(digits):
    return draw_candidates(digits, digits.train.statistics, seed=0)


@pytest.fixture(scope="module")
def truth(digits):
    encoder = RecordingEncoder(build_encoder(EncoderConfig(method="none"), None))
    split = digits.train.normalised_with(digits.train.statistics)
    encoder.encode(torch.arange(24), split, np.random.default_rng(0))
    return encoder.truth(1, "0", split)


def scores_of(images, truth, candidates, rows=None):
    ground_truth = GroundTruth(
        {(1, "0"): truth}, candidates.statistics, 10, candidates=candidates
    )
    recovered = Recovered("0", 1, images=images, rows=rows)
    return score_reconstruction(
        Reconstruction("private", (recovered,)), ground_truth, np.random.default_rng(0)
    )


def test_candidates_are_the_images_that_no_client_trained_on(digits, candidates):
    assert len(candidates) == candidates.num_images == len(digits.test)
    assert candidates.sizes == (100, 1000)
    held_out = load_dataset(Config().data.model_copy(update={"validation_share": 0.1}))
    more = draw_candidates(held_out, digits.train.statistics, seed=0)
    assert more.num_images == len(digits.test) + len(held_out.validation)
    shown = more.normalised(990, 1010)
    rows = more.order[990:1010]
    pixels = torch.cat(
        [
            digits.test.images,
            held_out.train.images[held_out.held_out.rows["validation"]],
        ]
    )[rows]
    torch.testing.assert_close(shown, digits.train.statistics.normalise(pixels))
    classes = torch.cat(
        [
            digits.test.targets,
            held_out.train.targets[held_out.held_out.rows["validation"]],
        ]
    )[more.order]
    assert torch.equal(more.targets, classes)


def test_ranks_are_those_of_a_sort(truth, candidates, rng):
    noise = torch.from_numpy(rng.standard_normal(truth.encodings.shape)).float()
    images = truth.encodings + 12 * noise
    ranks = ranks_among(images, truth.encodings[:, None], candidates, "raw")
    others = candidates.normalised(0, 999).flatten(1).double().numpy()
    for row in range(len(images)):
        shown = images[row].flatten().double().numpy()
        true = np.corrcoef(shown, truth.encodings[row].flatten().double().numpy())[0, 1]
        similar = np.abs(np.corrcoef(shown, others)[0, 1:])
        for column, size in enumerate(candidates.sizes):
            margin = similar[: size - 1] - abs(true)
            # Rounding to single precision may turn what is nearly equal.
            assert (margin > 3e-6).sum() <= ranks[row, column]
            assert ranks[row, column] <= (margin > -3e-6).sum()
    assert 0 < ranks[:, 1].double().mean() < 900


def test_signs_hide_an_image_from_pixels_and_not_from_absolute_values(
    truth, candidates, rng
):
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], truth.encodings.shape)).float()
    signed = signs * truth.encodings
    true = truth.encodings[:, None]
    for images in (signed, signed.abs(), 3 - 2 * signed.abs()):
        assert ranks_among(images, true, candidates, "folded").max() == 0
    assert ranks_among(signed, true, candidates, "raw").double().mean() > 20


def test_what_resembles_all_images_alike_identifies_none(truth, candidates):
    constant = torch.ones_like(truth.encodings)
    for distance in ("raw", "folded"):
        ranks = ranks_among(constant, truth.encodings[:, None], candidates, distance)
        assert torch.equal(ranks, torch.tensor([[99, 999]]).expand(24, 2))


@given(
    others=st.integers(0, 12),
    choices=st.integers(1, 6),
    below=st.integers(1, 5),
)
def test_chance_is_that_of_the_best_of_several_in_a_random_order(
    others, choices, below
):
    total = others + choices
    # The first of the choices is at position p if the p before it are all others.
    first = [
        np.prod([(others - i) / (total - i) for i in range(position)])
        * choices
        / (total - position)
        for position in range(others + 1)
    ]
    expected = sum(first[:below])
    chance = chance_of_rank(below, torch.tensor([others]), torch.tensor([choices]))
    assert float(chance[0]) == pytest.approx(expected)


@pytest.mark.parametrize("matched", [True, False])
def test_absolute_values_leak_by_identification_alone(truth, candidates, matched, rng):
    # Strong noise on top: SSIM of neither kind says much.
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], truth.encodings.shape)).float()
    noise = torch.from_numpy(rng.standard_normal(truth.encodings.shape)).float()
    images = signs * (truth.encodings.abs() + 3 * noise.abs())
    scores = scores_of(images, truth, candidates, None if matched else truth.rows)
    written = scores.to_json()["metrics"]["private"]["identification"]
    assert not similarity_beats(scores.private)
    assert not folded_beats(scores.private)
    assert verdict(SERVER, scores) == LEAKS
    assert written["1000"]["distance"] == "folded"
    assert written["1000"]["top1"] > 0.9 > written["1000"]["by_distance"]["raw"]["top1"]
    low, high = written["1000"]["top1_interval"]
    assert low < written["1000"]["top1"] <= high
    assert written["left_out"] == [10000]
    assert ("absent" in written) == matched


@pytest.mark.parametrize("kind", ["noise", "other images", "mean"])
def test_what_data_look_like_identifies_nobody(digits, truth, candidates, kind, rng):
    # Images are matched to the most similar of the client's, which chance allows for.
    others = digits.train.statistics.normalise(digits.train.images[100:124])
    images = {
        "noise": torch.from_numpy(rng.standard_normal(others.shape)).float(),
        "other images": others,
        "mean": others.mean(0, keepdim=True).expand_as(others),
    }[kind]
    scores = scores_of(images, truth, candidates)
    assert not scores.candidates.decisive.beats_chance
    assert verdict(SERVER, scores) == NO_LEAK


def test_images_of_one_class_are_told_from_others_of_that_class(digits, candidates):
    ones = (digits.train.targets == 1).nonzero()[:24, 0]
    more = (digits.train.targets == 1).nonzero()[24:48, 0]
    split = digits.train.normalised_with(digits.train.statistics)
    encoder = RecordingEncoder(build_encoder(EncoderConfig(method="none"), None))
    encoder.encode(ones, split, np.random.default_rng(0))
    truth = encoder.truth(1, "0", split)
    images = digits.train.statistics.normalise(digits.train.images[more])
    ranked = scores_of(images, truth, candidates).candidates.decisive
    assert ranked.chance(1) < ranked.top(1) / 2  # it did find out the class
    assert not ranked.beats_chance


@given(hits=st.integers(0, 30), count=st.integers(1, 30))
def test_exact_intervals_are_those_of_scipy(hits, count):
    from scipy.stats import binomtest

    hits = min(hits, count)
    expected = binomtest(hits, count).proportion_ci(0.9, method="exact")
    assert clopper_pearson(hits, count, 0.9) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("count", [50, 3000])
def test_bootstrap_intervals_cover_the_mean_about_as_often_as_they_say(count, rng):
    drawn = torch.from_numpy(rng.exponential(size=(200, count)))
    intervals = [bootstrap_interval(values) for values in drawn]
    covered = np.mean([low <= 1 <= high for low, high in intervals])
    assert 0.88 <= covered <= 1
    assert bootstrap_interval(drawn[0]) == intervals[0]
