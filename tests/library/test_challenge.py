"""Making challenges, their files, decryptions and scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from instahide_fl.attacks.base import Reconstruction, Recovered
from instahide_fl.challenge.challenge_target import open_challenge, open_truth
from instahide_fl.challenge.decryption import assign, decryption_of
from instahide_fl.challenge.files import (
    PublishedChallenge,
    read_decryption,
    read_published,
    write_decryption,
    write_published,
)
from instahide_fl.challenge.make import balanced_rows, make_challenge, write_challenge
from instahide_fl.challenge.score import measure, score_challenge
from instahide_fl.config import Config
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.errors import ConfigError, DataError, PoolError, ThreatModelError
from instahide_fl.rng import operating_system_stream
from instahide_fl.transcript.threat_model import THREAT_MODELS
from instahide_fl.types import PrivateSplit
from tests.library.challenges import write_pictures, write_pool

IMAGES, TIMES = 20, 6


@pytest.fixture
def config(tmp_path, monkeypatch, rng):
    monkeypatch.setenv("INSTAHIDE_FL_CACHE", str(tmp_path / "cache"))
    return Config.from_run_config(
        {
            "data.dataset": write_pictures(tmp_path / "pictures", rng),
            "data.augment": "none",
            "pool.source": write_pool(tmp_path / "pool", rng),
            "instahide.num-mixed": 6,
        }
    )


@pytest.fixture
def made(config, rng):
    return make_challenge(config, IMAGES, TIMES, rng)


@pytest.fixture
def folder(made, tmp_path):
    write_challenge(tmp_path / "challenge", made)
    return tmp_path / "challenge"


def test_every_image_is_the_first_component_equally_often(made):
    index = made.truth.key.private_index
    assert index.shape == (IMAGES * TIMES, 2)
    for column in index.T:
        assert column.bincount().tolist() == [TIMES] * IMAGES
    assert (index[:, 0] != index[:, 1]).all()
    assert (index[:IMAGES, 0] != torch.arange(IMAGES)).any(), "the order tells the key"


def test_inside_no_encoding_has_an_image_twice(config, rng):
    inside = {"instahide.scope": "inside", "instahide.num-mixed": 6}
    made = make_challenge(config.with_values(inside), 12, 3, rng)
    rows = made.truth.key.private_index.tolist()
    assert all(len(set(row)) == 6 for row in rows)


def test_encodings_are_those_of_the_librarys_encoder(config, made):
    from instahide_fl.data.pool import MixingPool

    truth, published = made.truth, made.published
    split = PrivateSplit(truth.images, truth.targets, 5, published.settings.statistics)
    encoder = build_encoder(config.instahide, MixingPool.open(config.pool.source), None)
    again = encoder.apply_key(truth.key, split)
    assert torch.equal(again.images, published.encodings)
    assert torch.equal(again.soft_targets, published.soft_targets)


def test_images_are_test_images_and_balanced(config, made, split, rng):
    assert made.truth.targets.bincount().tolist() == [4] * 5
    assert len(made.test_rows.unique()) == IMAGES
    with pytest.raises(DataError, match="needs 9 test images of class"):
        make_challenge(config, 45, 1, rng)
    rows = balanced_rows(PrivateSplit(split.images, torch.arange(20) % 5, 5), 7, rng)
    counts = (rows % 5).bincount(minlength=5)
    assert sorted(counts.tolist()) == [1, 1, 1, 2, 2]
    with pytest.raises(ConfigError, match="--images must be at least 4"):
        make_challenge(config, 3, 1, rng)


def test_the_public_files_hold_the_encodings_and_nothing_of_the_truth(folder, made):
    public = {path.name: path for path in folder.iterdir() if path.is_file()}
    assert set(public) == {"encryption.npy", "label.npy", "settings.toml"}
    content = b"".join(path.read_bytes() for path in public.values())
    key, truth = made.truth.key, made.truth
    secrets = [
        *truth.images,
        *key.sign_bits,
        key.private_index,
        key.public_index,
        key.coefficients,
        truth.targets,
        made.test_rows,
    ]
    for secret in secrets:
        assert secret.numpy().tobytes() not in content
    # Not a byte more than the arrays: nothing can hide behind them.
    for name, array in (
        ("encryption.npy", made.published.encodings),
        ("label.npy", made.published.soft_targets),
    ):
        assert public[name].stat().st_size == 128 + array.numpy().nbytes
    text = public["settings.toml"].read_text()
    assert made.published.settings.to_toml() == text
    assert "seed =" not in text
    assert str(folder.parent) not in text


def test_settings_do_not_depend_on_key_or_images(config, made):
    other = make_challenge(config, IMAGES, TIMES, np.random.default_rng(99))
    assert other.published.settings == made.published.settings
    assert not torch.equal(other.published.encodings, made.published.encodings)
    assert made.published.settings.keys == "reproducible-insecure"
    real = make_challenge(config, IMAGES, 1, operating_system_stream())
    assert real.published.settings.keys == "operating-system"


def test_what_is_written_is_read_back_and_opens_without_the_truth(folder, made):
    published = read_published(folder)
    assert torch.equal(published.encodings, made.published.encodings)
    assert torch.equal(published.soft_targets, made.published.soft_targets)
    assert np.load(folder / "encryption.npy").shape == (IMAGES * TIMES, 12, 12, 3)
    auditor = THREAT_MODELS["auditor-of-encodings"]
    known = open_challenge(folder).view(auditor).observations[0]
    assert torch.equal(known.mapping.private_index, made.truth.key.private_index)
    (folder / "truth").rename(folder.parent / "elsewhere")
    challenge = open_challenge(folder)
    seen = challenge.view(THREAT_MODELS["encodings-holder"]).observations[0]
    assert seen.mapping is None
    assert torch.equal(seen.encodings, published.encodings)
    with pytest.raises(ThreatModelError, match="only truth/ tells"):
        challenge.view(auditor)
    with pytest.raises(ThreatModelError, match="consists of encodings"):
        challenge.view(THREAT_MODELS["honest-server"])
    with pytest.raises(DataError, match="only whoever made a challenge can score it"):
        open_truth(folder)


def test_the_pool_must_be_the_one_that_was_used(folder, config, tmp_path, rng):
    assert open_challenge(folder).pool is None
    assert len(open_challenge(folder, config.pool.source).pool) == 200
    other = write_pool(tmp_path / "other", rng, 9)
    with pytest.raises(PoolError, match="the challenge was made with"):
        open_challenge(folder, other)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.uint8, ">f4"])
def test_other_number_formats_are_read(folder, made, kind):
    images, statistics = made.published.encodings, made.published.settings.statistics
    array = images.permute(0, 2, 3, 1).numpy()
    within = 1e-2
    if kind is np.uint8:
        pixels = statistics.restore(images).clamp(0, 1) * 255
        array = pixels.round().permute(0, 2, 3, 1).numpy()
        images, within = statistics.normalise(pixels), 0.02
    np.save(folder / "encryption.npy", array.astype(kind))
    np.save(folder / "label.npy", np.load(folder / "label.npy").astype(np.float64))
    torch.testing.assert_close(
        read_published(folder).encodings, images, atol=within, rtol=0
    )


def test_the_original_challenge_has_no_settings_file(folder):
    (folder / "settings.toml").unlink()
    published = read_published(folder)
    assert published.assumed
    assert published.settings.instahide.num_mixed == 6
    assert published.settings.statistics.mean == (0.5, 0.5, 0.5)


LABELS = np.full((IMAGES * TIMES, 5), 0.1, np.float32)


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("encryption", np.zeros((4, 12, 12), np.float32), "must be .encodings, height"),
        ("encryption", np.zeros((4, 12, 12, 2), np.float32), "1 or 3 channels"),
        ("encryption", np.zeros((4, 12, 12, 3), np.int64), "must hold float16"),
        ("encryption", np.full((4, 12, 12, 3), np.nan), "not finite"),
        ("encryption", np.array([np.zeros(2), np.zeros(3)], object), "of one shape"),
        ("encryption", np.zeros((120, 8, 8, 3)), "says images of shape"),
        ("label", LABELS[:5], "a row for each of the 120"),
        ("label", LABELS[:, 0], "must be .encodings, classes"),
        ("label", LABELS * 3, "rows must be soft labels"),
        ("label", -LABELS, "rows must be soft labels"),
        ("label", LABELS * 0, "rows must be soft labels"),
        ("label", LABELS * np.nan, "not finite"),
        ("label", None, "label.npy is missing"),
    ],
)
def test_malformed_files_are_explained(folder, name, array, reason):
    path = folder / f"{name}.npy"
    if array is None:
        path.unlink()
    else:
        np.save(path, array, allow_pickle=True)
    with pytest.raises(DataError, match=reason):
        read_published(folder)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("format = 1", "format = 2", "format must be 1"),
        ("num-mixed = 6", "num-mixed = 0", "num-mixed must be"),
        ("images = 20", "pictures = 20", "unknown setting pictures"),
        ("[data]", "[data", "cannot read"),
        ("mean = [\n", "mean = [\n    0.5,\n", "one number for each of 3"),
    ],
)
def test_malformed_settings_are_explained(folder, old, new, reason):
    path = folder / "settings.toml"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=reason):
        read_published(folder)


def test_a_decryption_must_fit(tmp_path):
    path, shape = tmp_path / "d.npy", (4, 3, 12, 12)
    images = torch.rand(shape)
    write_decryption(path, images)
    assert torch.equal(read_decryption(path, shape), images)
    np.save(path, np.full((4, 12, 12, 3), 255, np.uint8))
    assert read_decryption(path, shape).min() == 1
    for array, reason in (
        (np.zeros((4, 3, 12, 12)), "must have one image for each encoding"),
        (np.zeros((3, 12, 12, 3)), "must have one image for each encoding"),
        (np.full((4, 12, 12, 3), -1.0), r"must hold pixels in \[0, 1\]"),
        (np.full((4, 12, 12, 3), np.nan), "not finite"),
        (np.zeros((4, 12, 12, 3), complex), "must hold float16"),
    ):
        np.save(path, array)
        with pytest.raises(DataError, match=reason):
            read_decryption(path, shape)


def test_the_score_is_that_of_the_rules_written_out(rng):
    originals = rng.random((7, 12, 12, 3))
    pairs = np.array([[0, 1], [2, 3], [4, 5], [6, 0]])
    decryption = (originals[[1, 2, 4, 3]] + 0.1 * rng.random((4, 12, 12, 3))).clip(0, 1)
    table = []
    for image, (first, second) in zip(decryption, pairs, strict=True):
        ssim = [
            structural_similarity(image, originals[row], channel_axis=2, data_range=1.0)
            for row in (first, second)
        ]
        l2 = [np.mean((2 * image - 2 * originals[row]) ** 2) for row in (first, second)]
        table.append((max(ssim), np.mean(ssim), min(l2), np.mean(l2)))
    found = measure(
        torch.from_numpy(decryption).permute(0, 3, 1, 2),
        torch.from_numpy(originals).permute(0, 3, 1, 2),
        torch.from_numpy(pairs),
    )
    expected = np.mean(table, axis=0)
    got = (found.max_ssim, found.mean_ssim, found.min_l2, found.mean_l2)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_baselines_stand_beside_the_score(made):
    truth, statistics = made.truth, made.published.settings.statistics
    strongest = truth.key.coefficients[:, :2].argmax(dim=1)
    rows = truth.key.private_index[torch.arange(len(strongest)), strongest]
    score = score_challenge(truth.images[rows] / 255, truth, statistics)
    assert score.submitted == score.perfect
    assert score.submitted.max_ssim == pytest.approx(1)
    assert score.submitted.mean_ssim == pytest.approx(0.5, abs=0.15)
    assert score.submitted.min_l2 == 0
    assert score.negative.max_ssim < 0.5
    assert score.mean_image.max_ssim < 0.5
    json.dumps(score.to_json(), allow_nan=False)


@pytest.mark.parametrize("how", ["mapping", "links", "residual"])
def test_each_encoding_gets_the_image_that_weighs_most(folder, made, how):
    truth, statistics = made.truth, made.published.settings.statistics
    challenge = open_challenge(folder)
    holder = how != "mapping"
    name = "encodings-holder" if holder else "auditor-of-encodings"
    view = challenge.view(THREAT_MODELS[name])
    weights = torch.zeros(IMAGES * TIMES, IMAGES)
    weights.scatter_(1, truth.key.private_index, truth.key.coefficients[:, :2])
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))
    images = -statistics.normalise(truth.images[order])
    recovered = Recovered(
        *("challenge", 0, images),
        rows=None if holder else order,
        weights=weights[:, order] if how == "links" else None,
    )
    chosen = assign(recovered, images, truth.encodings, view.observations[0].mapping)
    right = (order[chosen] == weights.argmax(dim=1)).float().mean()
    assert right == 1 if how != "residual" else right > 0.3  # by chance 0.05
    decryption = decryption_of(Reconstruction("private", (recovered,)), view)
    # All came out negative, which the range of pixels tells.
    torch.testing.assert_close(decryption, truth.images[order[chosen]] / 255)
    assert decryption_of(Reconstruction("labels", (recovered,)), view) is None


def test_the_public_form_has_no_room_for_the_truth(made, tmp_path):
    assert set(PublishedChallenge.__dataclass_fields__) == {
        *("encodings", "soft_targets", "settings", "assumed")
    }
    write_published(tmp_path / "public", made.published)
    assert len(list((tmp_path / "public").iterdir())) == 3
