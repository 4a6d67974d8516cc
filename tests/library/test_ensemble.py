"""Averaging predictions over encodings, against a slow loop; opening a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from instahide_fl.config import Config, EncoderConfig, ModelConfig
from instahide_fl.data.datasets import load_dataset
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import IdentityEncoder
from instahide_fl.errors import ConfigError, DataError, OutputError, PoolError
from instahide_fl.evaluation.clean import evaluate
from instahide_fl.evaluation.encoded import (
    evaluate_encoded_batch,
    evaluate_encodings,
    inference_config,
    inference_encoder,
    training_pool,
)
from instahide_fl.evaluation.finished_run import load_trained_model, open_finished_run
from instahide_fl.models.arrays import get_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.run_folder import MODEL, PROVENANCE, SUMMARY, RunFolder


@pytest.fixture
def model():
    return build_model(ModelConfig(width=4), (3, 8, 8), 5, 0)


def encoder_of(pool, own_coefficient=None, **settings):
    return inference_encoder(
        inference_config(EncoderConfig(**settings), own_coefficient), pool
    )


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_without_mixing_and_signs_it_is_the_clean_evaluation(
    model, split, pool, rng, average
):
    accuracy, loss = evaluate(model, split)
    alone = encoder_of(pool, method="mixup", num_mixed=1)
    for encoder in (IdentityEncoder(), alone):
        found = evaluate_encodings(model, split, encoder, 3, rng, average=average)
        assert found.accuracy_by_encodings == (accuracy,) * 3
        assert found.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_cumulative_averages_equal_a_slow_loop(model, split, pool, average):
    encoder = encoder_of(pool)
    found = evaluate_encodings(
        *(model, split, encoder, 4, np.random.default_rng(1)),
        average=average,
        batch_size=7,
    )
    rng = np.random.default_rng(1)
    outputs = []
    for _ in range(4):
        batches = [
            encoder.encode(rows, split, rng)[0].images
            for rows in torch.arange(len(split)).split(7)
        ]
        with torch.no_grad():
            logits = torch.cat([model(images) for images in batches])
        outputs.append(logits.softmax(1) if average == "softmax" else logits)
    for count in range(1, 5):
        mean = torch.stack(outputs[:count]).mean(0)
        accuracy = (mean.argmax(1) == split.targets).float().mean().item()
        assert found.accuracy_by_encodings[count - 1] == pytest.approx(accuracy)
    score = mean.log() if average == "softmax" else mean
    assert found.loss == pytest.approx(F.cross_entropy(score, split.targets).item())


def test_a_batch_of_a_run_is_evaluated_as_a_finished_run_is(model, split, pool):
    encoder, rows = encoder_of(pool), torch.arange(len(split))
    expected = evaluate_encodings(model, split, encoder, 3, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    figures = evaluate_encoded_batch(
        model, split, rows, encoder=encoder, encodings=3, rng=rng
    )
    assert figures.correct == expected.accuracy * len(split)
    assert figures.loss / len(split) == pytest.approx(expected.loss)


def test_seeds_repeat_and_more_encodings_begin_with_the_same(model, split, pool):
    encoder = encoder_of(pool)
    few, again, more, other = (
        evaluate_encodings(model, split, encoder, count, np.random.default_rng(seed))
        for count, seed in ((3, 1), (3, 1), (6, 1), (3, 2))
    )
    assert few == again
    assert more.accuracy_by_encodings[:3] == few.accuracy_by_encodings
    assert other.loss != few.loss


@pytest.mark.parametrize(
    ("settings", "own_coefficient", "least"),
    [
        ({}, None, 0.3),
        ({"min_private_weight": 0.4}, None, 0.4),
        ({"method": "mixup"}, 0.5, 0.5),
        ({"scope": "inside"}, None, 0.0),
        ({"scope": "inside", "num_mixed": 6}, 0.5, 0.5),
        ({"num_private": 4, "coefficient_law": "dirichlet"}, None, 0.0),
    ],
)
def test_every_key_keeps_the_bound_and_has_no_private_partner(
    split, pool, rng, settings, own_coefficient, least
):
    encoder = encoder_of(pool, own_coefficient, **settings)
    index = torch.arange(20).repeat(50)
    key = encoder.draw_key(index, split, rng)
    assert key.private_index.shape == (1000, 1)
    assert torch.equal(key.private_index[:, 0], index)
    assert key.public_index.shape[1] == encoder.config.num_mixed - 1
    own = key.coefficients[:, 0]
    assert own.min() >= least
    # The bound is used, not a higher one: some draws come close to it.
    assert own.min() < least + 0.1
    assert key.coefficients.max() <= encoder.config.max_coefficient
    assert key.augmentation is None
    assert (key.sign_bits is None) == (encoder.config.method == "mixup")


def test_partners_inside_are_training_images_normalised_like_them(split):
    pool = training_pool(split.subset(torch.tensor([3, 5, 7])))
    assert torch.equal(pool.images, split.images[[3, 5, 7]])
    other = split.normalised_with(MixingPool.from_images(split.images[:2]).statistics)
    assert training_pool(other).statistics == other.statistics


@pytest.mark.parametrize(
    ("settings", "own_coefficient", "expected"),
    [
        ({"method": "none"}, None, "no encodings to average"),
        ({}, 0.65, "below the run's instahide.max-coefficient, got 0.65"),
        ({}, -0.1, r"\[0, 0.65\)"),
        ({}, float("nan"), r"\[0, 0.65\)"),
        # Reachable by two private images together, not by one.
        ({"min_private_weight": 0.8}, None, "give such an --own-coefficient"),
        ({"num_mixed": 1}, 1.0, r"\[0, 1\)"),
        ({"num_mixed": 12}, 0.6, "lower --own-coefficient"),
    ],
)
def test_bounds_out_of_reach_are_refused(pool, settings, own_coefficient, expected):
    with pytest.raises(ConfigError, match=expected):
        encoder_of(pool, own_coefficient, **settings)


def test_unknown_averages_and_no_encodings_are_refused(model, split, rng):
    for options in ({"encodings": 0}, {"encodings": 1, "average": "median"}):
        with pytest.raises(ConfigError):
            evaluate_encodings(model, split, IdentityEncoder(), rng=rng, **options)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run's folder as the server leaves it, of a model that never trained."""
    monkeypatch.setenv("INSTAHIDE_FL_CACHE", str(tmp_path / "cache"))
    pool = MixingPool.from_images(torch.randint(0, 256, (9, 3, 8, 8)).byte())
    pool.save(tmp_path / "pool")
    config = Config().with_values(
        {
            "data.dataset": "noise:40x3x8x8",
            "pool.source": str(tmp_path / "pool"),
            "model.width": 4,
        }
    )
    folder = RunFolder.create(tmp_path / "run", config)
    dataset = load_dataset(config.data)
    shape, classes = dataset.image_shape, dataset.train.num_classes
    folder.save_model(get_arrays(build_model(config.network, shape, classes, 7)))
    digests = {"dataset_digest": dataset.digest, "pool_sha256": pool.sha256}
    folder.write_json(PROVENANCE, digests)
    folder.write_json(SUMMARY, {"final_accuracy": 0.1})
    return folder


def test_a_finished_run_gives_back_its_model_and_pool(finished):
    run = open_finished_run(finished.path)
    expected = finished.load_model()
    assert get_arrays(run.model).keys() == expected.keys()
    for name, value in get_arrays(run.model).items():
        assert torch.equal(value, expected[name])
    provenance = json.loads((finished.path / PROVENANCE).read_text())
    assert run.partner_pool().sha256 == provenance["pool_sha256"]


@pytest.mark.parametrize(
    ("name", "content", "error", "expected"),
    [
        ("config.toml", None, OutputError, "not a run folder"),
        (SUMMARY, None, OutputError, "is not finished: continue it"),
        (SUMMARY, "{", OutputError, "summary.json is damaged"),
        (MODEL, None, OutputError, "cannot read the model"),
        (MODEL, "x", OutputError, "cannot read the model"),
        (PROVENANCE, '{"dataset_digest": "abc"}', DataError, "pictures of .* changed"),
    ],
)
def test_folders_that_are_not_what_was_trained_are_refused(
    finished, name, content, error, expected
):
    path = finished.path / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(error, match=expected):
        open_finished_run(finished.path)


def test_a_model_of_other_settings_is_refused(finished):
    config = finished.config().with_values({"model.width": 5})
    with pytest.raises(OutputError, match=r"is not the model that config\.toml"):
        load_trained_model(finished, config, load_dataset(config.data))


def test_another_pool_is_refused(finished):
    run = open_finished_run(finished.path)
    folder = Path(run.config.pool.source)
    other = MixingPool.from_images(torch.zeros(9, 3, 8, 8, dtype=torch.uint8))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with pytest.raises(PoolError, match="no pool at"):
        run.partner_pool()
    other.save(folder)
    with pytest.raises(
        PoolError, match=r"the images of pool\.source .* have changed since"
    ):
        run.partner_pool()
