from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from instahide_fl.attacks.base import Reconstruction, Recovered
from instahide_fl.audit.scoring.attack_scores import ImageSimilarity
from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.audit.scoring.originals import Originals
from instahide_fl.audit.scoring.score_reconstruction import score_reconstruction
from instahide_fl.audit.scoring.verdict import (
    LEAKS,
    LEAKS_TO_ADVERSARY,
    NO_LEAK,
    NO_VERDICT,
    beats_baseline,
    folded_beats,
    similarity_beats,
    verdict,
)
from instahide_fl.config import Config, EncoderConfig
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import load_dataset
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.errors import ShapeError, TranscriptError
from instahide_fl.metrics.scores import Summary
from instahide_fl.transcript.threat_model import threat_model
from instahide_fl.transcript.truth import RecordingEncoder
from instahide_fl.types import PrivateSplit

SERVER, AUDITOR = threat_model("honest-server"), threat_model("auditor")
CLASSES = 4


def smooth_images(rng, count):
    coarse = torch.from_numpy(rng.random((count, 3, 5, 5), dtype=np.float32))
    fine = F.interpolate(coarse, (20, 20), mode="bicubic", align_corners=True)
    return fine.clamp(0, 1)


def federation(
    rng,
    method="none",
    clients=1,
    rounds=1,
    batch=12,
    augmentation=None,
    num_mixed=2,
):
    """Return the truths of a small federation, and one client's split."""
    pixels = (smooth_images(rng, 40) * 255).to(torch.uint8)
    targets = torch.from_numpy(rng.integers(0, CLASSES, 40))
    split = PrivateSplit(pixels, targets, CLASSES)
    config = EncoderConfig(method=method, scope="inside", num_mixed=num_mixed)
    truths = {}
    for number in range(1, rounds + 1):
        for client in map(str, range(clients)):
            encoder = RecordingEncoder(
                build_encoder(config, None, augmentation=augmentation)
            )
            own = split.subset(torch.arange(40)[int(client) :: clients])
            own = own.normalised_with(split.statistics)
            index = torch.from_numpy(rng.permutation(len(own))[:batch])
            encoder.encode(index, own, rng)
            truths[number, client] = encoder.truth(number, client, own)
    return truths, split.statistics


def scored(truths, statistics, target, rng, **fields):
    reconstruction = Reconstruction(target, (Recovered("0", 1, **fields),))
    ground_truth = GroundTruth(truths, statistics, CLASSES)
    return score_reconstruction(reconstruction, ground_truth, rng)


def noise_like(truths, statistics, rng, count):
    white = torch.from_numpy(rng.standard_normal((count, 3, 20, 20))).float()
    smooth = statistics.normalise(smooth_images(rng, count) * 255)
    return {
        "white": white,
        "smooth": smooth,
        "constant": torch.zeros_like(white),
        "mean of all": smooth.mean(0, keepdim=True).expand_as(smooth),
    }


@pytest.mark.parametrize("batch", [1, 12])
@pytest.mark.parametrize(
    ("target", "method"),
    [("encoding", "none"), ("encoding", "instahide"), ("private", "none")],
)
def test_noise_is_no_leak_with_few_images_or_many(batch, target, method, rng):
    truths, statistics = federation(rng, method, batch=batch)
    for name, images in noise_like(truths, statistics, rng, batch).items():
        scores = scored(truths, statistics, target, rng, images=images)
        assert verdict(SERVER, scores) == NO_LEAK, name


@pytest.mark.parametrize(
    "batch", [1, *(pytest.param(size, marks=pytest.mark.long) for size in (2, 4, 12))]
)
@pytest.mark.parametrize("kind", ["other images", "mean"])
def test_images_that_look_like_the_data_are_no_leak(kind, batch, rng):
    # A guess from what such data look like: digits resemble each other far more than
    # they resemble noise, so noise alone is no measure of it.
    digits = load_dataset(Config().data).train
    order = torch.from_numpy(rng.permutation(len(digits)))
    own = digits.subset(order[:200]).normalised_with(digits.statistics)
    for trial in range(10):
        encoder = RecordingEncoder(build_encoder(EncoderConfig(method="none"), None))
        encoder.encode(torch.arange(batch) + batch * trial, own, rng)
        truths = {(1, "0"): encoder.truth(1, "0", own)}
        drawn = digits.images[order[200:].roll(-batch * trial)]
        guess = drawn[:batch] if kind == "other images" else drawn.float().mean(0)[None]
        images = digits.statistics.normalise(guess.clone())
        scores = scored(truths, digits.statistics, "encoding", rng, images=images)
        assert not similarity_beats(scores.private), trial


def test_images_that_another_round_mixed_are_no_baseline(rng):
    truths, statistics = federation(rng, rounds=2, batch=12)
    mixed = torch.cat([one.rows for one in truths.values()]).unique()
    originals = Originals.of(truths, statistics)
    assert len(mixed) > 12
    assert len(originals.unrecorded) == 40 - len(mixed)


@pytest.mark.parametrize("batch", [1, 12])
@pytest.mark.parametrize("target", ["encoding", "private"])
def test_near_copies_leak_in_either_sign_with_few_images_or_many(batch, target, rng):
    truths, statistics = federation(rng, batch=batch)
    truth = truths[1, "0"]
    noise = torch.from_numpy(rng.standard_normal(truth.encodings.shape)).float()
    for sign in (1, -1):
        images = sign * (truth.encodings + 0.1 * noise).flip(0)
        scores = scored(truths, statistics, target, rng, images=images)
        assert scores.private.attack.sign_ssim.mean > 0.8
        assert (scores.private.attack.ssim.mean > 0.8) == (sign == 1)
        assert verdict(SERVER, scores) == LEAKS
        assert verdict(AUDITOR, scores) == LEAKS_TO_ADVERSARY


def test_one_copy_among_much_noise_leaks(rng):
    truths, statistics = federation(rng)
    images = noise_like(truths, statistics, rng, 12)["white"]
    images[7] = truths[1, "0"].encodings[3]
    scores = scored(truths, statistics, "private", rng, images=images)
    assert scores.private.attack.ssim.best > 0.99
    assert verdict(SERVER, scores) == LEAKS


@pytest.mark.parametrize(("num_mixed", "expected"), [(2, LEAKS), (8, NO_LEAK)])
def test_an_encoding_is_a_leak_only_by_what_its_absolute_values_show(
    num_mixed, expected, rng
):
    truths, statistics = federation(rng, "instahide", num_mixed=num_mixed)
    images = truths[1, "0"].encodings.flip(0)
    scores = scored(truths, statistics, "encoding", rng, images=images)
    assert scores.encoding.attack.ssim.mean == pytest.approx(1)
    assert similarity_beats(scores.encoding)
    assert scores.private.attack.sign_ssim.mean < 0.3
    assert not similarity_beats(scores.private)
    assert verdict(SERVER, scores) == expected


def without_signs(images, rng):
    """Return images of which only absolute values are right, in three ways."""
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], images.shape)).float()
    return {
        "random signs": signs * images,
        "other scale": 3 * images.abs() + 0.7,
        "negative": 1 - 0.2 * images.abs(),
    }


def test_absolute_values_of_private_images_leak(rng):
    truths, statistics = federation(rng)
    private = truths[1, "0"].encodings.flip(0)
    for name, images in without_signs(private, rng).items():
        scores = scored(truths, statistics, "private", rng, images=images)
        folded = scores.private.folded
        assert folded.attack.ssim.mean == pytest.approx(1, abs=1e-3), name
        assert folded.attack.count == 12
        assert max(b.ssim.mean for b in folded.baselines.values()) < 0.6, name
        assert not similarity_beats(scores.private), name
        assert verdict(SERVER, scores) == LEAKS, name


def test_attacks_that_cannot_see_signs_are_held_against_absolute_values(rng):
    truths, statistics = federation(rng, "instahide", num_mixed=8)
    ground_truth = GroundTruth(truths, statistics, CLASSES, sign_invariant=True)
    encodings = truths[1, "0"].encodings.flip(0)
    for name, images in without_signs(encodings, rng).items():
        recovered = Recovered("0", 1, images=images)
        scores = score_reconstruction(
            Reconstruction("encoding", (recovered,)), ground_truth, rng
        )
        folded = scores.encoding.folded
        assert folded.attack.ssim.mean == pytest.approx(1, abs=1e-3), name
        assert folded_beats(scores.encoding), name
        assert not similarity_beats(scores.encoding), name
        # The picture shows the first encoding beside what was recovered of it.
        shown = scores.shown[0].reconstructions[0]
        either = [statistics.restore(sign * images[-1:])[0] for sign in (1, -1)]
        assert any(shown.allclose(image, atol=1e-4) for image in either), name


def test_a_mixup_encoding_recovered_shows_the_images_in_it(rng):
    truths, statistics = federation(rng, "mixup")
    images = truths[1, "0"].encodings
    scores = scored(truths, statistics, "encoding", rng, images=images)
    assert scores.identified.attack.precision > scores.identified.chance + 0.3
    assert verdict(SERVER, scores) == LEAKS


def test_private_images_are_sought_in_all_rounds_and_rows_are_believed(rng):
    truths, statistics = federation(rng, "instahide", rounds=3)
    rows = torch.unique(torch.cat([truth.rows for truth in truths.values()]))
    assert len(rows) > len(truths[1, "0"].rows)
    images = torch.empty(len(rows), 3, 20, 20)
    for truth in truths.values():
        at = torch.searchsorted(rows, truth.rows)
        images[at] = statistics.normalise(truth.images)
    joined = Recovered("0", 0, images=images.flip(0))

    ground_truth = GroundTruth(truths, statistics, CLASSES)

    def make(recovered):
        reconstruction = Reconstruction("private", (recovered,))
        return score_reconstruction(reconstruction, ground_truth, rng)

    assert make(joined).private.attack.ssim.mean == pytest.approx(1)
    assert make(joined).identified is None
    known = make(replace(joined, images=images, rows=rows))
    assert known.private.attack.ssim.mean == pytest.approx(1)
    assert known.identified.attack.precision == 1
    wrong = make(replace(joined, images=images, rows=rows.roll(1)))
    assert wrong.private.attack.ssim.mean < 0.5
    assert not beats_baseline(wrong)
    with pytest.raises(ShapeError, match="rows of client 0"):
        make(replace(joined, rows=rows + 1000))


def test_the_figures_are_written_as_json_without_nan(rng):
    truths, statistics = federation(rng, clients=2, batch=10)
    images = truths[1, "1"].encodings[:9]
    one = Recovered("1", 1, images=images)
    other = Recovered("0", 1, images=torch.full_like(images, torch.nan))
    scores = score_reconstruction(
        Reconstruction("encoding", (one, other)),
        GroundTruth(truths, statistics, CLASSES),
        rng,
    )
    written = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    private = written["metrics"]["private"]
    assert private["count"] == 18
    assert private["ssim"]["share_above_0.5"] >= 0.5
    assert private["ssim"].keys() == (
        {"mean", "n", "interval", "best", "share_above_0.5", "spread"}
    )
    assert set(private["folded"]) == {"count", "ssim", "baseline"}
    assert private["folded"]["count"] == 18
    assert set(private["folded"]["ssim"]) == set(private["ssim"])
    assert set(private["folded"]["baseline"]) == {
        "no_information",
        "matched_noise",
        "other_images",
    }
    assert "other_images" not in written["metrics"]["encoding"]["folded"]["baseline"]
    assert set(private["sign_best"]) == set(private["affine_oracle"])
    assert "absent" in private["lpips"] or private["lpips"]["best"] < 0.01
    assert 0 < written["baseline"]["ssim"] < 0.6
    assert set(written["baseline"]["matched_noise"]) == {"private", "encoding"}
    assert written["caveats"][0].startswith("9 reconstructions held values")


def test_the_picture_shows_the_first_victims_in_aligned_rows(rng):
    truths, statistics = federation(rng, "instahide")
    truth = truths[1, "0"]
    images = -truth.encodings.flip(0)
    (victims,) = scored(truths, statistics, "encoding", rng, images=images).shown
    assert len(victims.originals) == len(victims.ssim) == 8
    torch.testing.assert_close(
        victims.encodings, statistics.restore(truth.encodings[:8])
    )
    torch.testing.assert_close(victims.reconstructions, victims.encodings)
    private = statistics.normalise(truth.images)
    (victims,) = scored(truths, statistics, "private", rng, images=private).shown
    torch.testing.assert_close(victims.reconstructions, victims.originals)
    place = (truth.key.private_index == truth.rows[0]).float()
    strongest = (place * truth.key.coefficients).sum(1).argmax()
    torch.testing.assert_close(
        victims.encodings[0], statistics.restore(truth.encodings)[strongest]
    )


def test_encodings_are_held_against_images_as_they_were_cropped(rng):
    augmentation = Augmentation(padding=4, flip=True)
    truths, statistics = federation(rng, augmentation=augmentation)
    one = Recovered("0", 1, images=truths[1, "0"].encodings)
    made = Reconstruction("encoding", (one,))
    ground_truth = GroundTruth(truths, statistics, CLASSES, augmentation)
    known = score_reconstruction(made, ground_truth, rng)
    assert known.private.attack.ssim.mean == pytest.approx(1)
    assert known.caveats == ()
    unknown = score_reconstruction(made, replace(ground_truth, augmentation=None), rng)
    assert unknown.private.attack.ssim.mean < 0.8
    assert "cropped and mirrored" in unknown.caveats[0]


def test_augmentation_is_no_defence_before_somebody_looked_for_it(rng):
    augmentation = Augmentation(padding=4, flip=True)
    truths, statistics = federation(rng, augmentation=augmentation)
    truth = truths[1, "0"]
    mirrored = statistics.normalise(truth.images).flip(3)
    one = Recovered("0", 0, images=mirrored, rows=truth.rows)
    naive = Reconstruction("private", (one,))
    ground_truth = GroundTruth(truths, statistics, CLASSES, augmentation)
    scores = score_reconstruction(naive, ground_truth, rng)
    assert any("registered_decoding has run" in text for text in scores.caveats)
    written = scores.to_json()["metrics"]["private"]["registered"]
    assert written["ssim"]["mean"] == pytest.approx(1)
    assert written["no_information"]["mean"] < 0.9

    looked = replace(naive, aligned=True)
    scores = score_reconstruction(looked, ground_truth, rng)
    assert not any("registered_decoding" in text for text in scores.caveats)


def test_labels_count_unless_they_were_given(rng):
    truths, statistics = federation(rng, "instahide")
    truth = truths[1, "0"]
    soft = scored(
        truths, statistics, "labels", rng, soft_targets=truth.soft_targets.flip(0)
    )
    assert soft.soft_labels.errors.max() < 1e-6
    assert soft.to_json()["metrics"]["labels"]["soft"]["max_error"] < 1e-6
    assert verdict(SERVER, soft) == LEAKS
    assert verdict(AUDITOR, soft) == NO_LEAK
    hard = scored(truths, statistics, "labels", rng, classes=truth.targets)
    assert hard.hard_labels.overlap == 1
    with pytest.raises(ShapeError, match=r"0\.\.3"):
        scored(truths, statistics, "labels", rng, classes=truth.targets + 9)


@pytest.mark.parametrize("batch", [1, 2, 12])
def test_guessed_labels_are_no_leak(batch):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truths, statistics = federation(rng, "instahide", batch=batch)
        guess = torch.from_numpy(rng.dirichlet(np.ones(CLASSES), batch)).float()
        classes = torch.from_numpy(rng.integers(0, CLASSES, batch))
        fields = {"soft_targets": guess, "classes": classes}
        scores = scored(truths, statistics, "labels", rng, **fields)
        assert verdict(SERVER, scores) == NO_LEAK


def test_an_attack_that_fails_where_nothing_is_hidden_has_no_verdict(rng):
    truths, statistics = federation(rng)
    noise = noise_like(truths, statistics, rng, 12)["smooth"]
    failed = scored(truths, statistics, "private", rng, images=noise)
    images = truths[1, "0"].encodings
    worked = scored(truths, statistics, "private", rng, images=images)
    assert verdict(SERVER, failed, undefended=failed) == NO_VERDICT
    assert verdict(SERVER, failed, undefended=worked) == NO_LEAK
    assert verdict(SERVER, worked, undefended=failed) == LEAKS
    nothing = scored(truths, statistics, "private", rng)
    assert nothing.private is None
    assert verdict(SERVER, nothing) == NO_LEAK


def test_reconstructions_that_do_not_fit_the_truth_are_refused(rng):
    truths, statistics = federation(rng)
    with pytest.raises(ShapeError, match="3, 20, 20"):
        scored(truths, statistics, "private", rng, images=torch.zeros(2, 3, 8, 8))
    stranger = Reconstruction(
        "private", (Recovered("7", 1, torch.zeros(1, 3, 20, 20)),)
    )
    with pytest.raises(TranscriptError, match=r"record\.truth"):
        score_reconstruction(stranger, GroundTruth(truths, statistics, CLASSES), rng)


@pytest.mark.parametrize(("share", "leaks"), [(0.1, True), (0.01, False)])
def test_a_few_recognisable_images_leak_though_none_stands_out(share, leaks, rng):
    truths, statistics = federation(rng)
    images = truths[1, "0"].encodings
    scores = scored(truths, statistics, "private", rng, images=images).private
    attack = Summary(mean=0.15, best=0.6, spread=0.1, share_above_half=share)
    chance = Summary(mean=0.12, best=0.45, spread=0.1, share_above_half=0.0)
    similarity = ImageSimilarity(
        replace(scores.attack, count=100, sign_ssim=attack),
        replace(scores.no_information, count=100, sign_ssim=chance),
        replace(scores.matched_noise, count=500, sign_ssim=chance),
    )
    assert similarity_beats(similarity) == leaks
