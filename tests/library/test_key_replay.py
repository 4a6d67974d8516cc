"""Keys that follow from a seed are found; those of the operating system are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from instahide_fl.attacks.base import ignore_progress
from instahide_fl.attacks.key_replay.attack import KeyReplay
from instahide_fl.attacks.key_replay.known_keys import open_encodings
from instahide_fl.attacks.key_replay.seed_check import coefficients_fit, divisions
from instahide_fl.attacks.key_replay.seeded_client import SeededClient
from instahide_fl.audit.scoring.key_scores import score_keys
from instahide_fl.config import Config, EncoderConfig
from instahide_fl.data.augment import Augmentation
from instahide_fl.encoding.encoder import FixedEncodings, build_encoder
from instahide_fl.errors import AttackError
from instahide_fl.models.arrays import get_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.rng import client_stream, fixed_stream, operating_system_stream
from instahide_fl.training.local import local_update
from instahide_fl.transcript.threat_model import threat_model
from instahide_fl.transcript.truth import RecordingEncoder
from instahide_fl.transcript.view import AdversaryView, Observation, step_sizes

SEED = 37
WHOLE = {
    "instahide.num-mixed": 4,
    "train.batch-size": 8,
    "train.local-batches": 2,
    "model.name": "mlp",
    "model.width": 4,
    "data.augment": "none",
}


def settings(**changes):
    dotted = {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}
    return Config().with_values({**WHOLE, **dotted})


def train(config, split, pool, rng, model_name=None):
    """Let a client compute a round, and return its update and what it hid."""
    encoder = build_encoder(config.instahide, pool)
    if (count := config.instahide.refresh) != "epoch":
        encoder = FixedEncodings(encoder, count, lambda t: fixed_stream(SEED, "5", t))
    encoder = RecordingEncoder(encoder)
    shape = tuple(split.images.shape[1:])
    model = build_model(config.network, shape, split.num_classes, 0)
    sent = get_arrays(model)
    update = local_update(model, sent, split, encoder, config.train, rng)
    return sent, update, encoder.truth(1, "5", split)


def view(name, config, split, pool, **seen):
    model = threat_model(name)
    observation = Observation(1, "5", 0, 1.0, config.train.update_kind, **seen)
    return AdversaryView(
        model,
        config,
        split.statistics,
        tuple(split.images.shape[1:]),
        split.num_classes,
        (observation,),
        (),
        pool if config.instahide.uses_pool else None,
    )


def holder(config, split, pool, truth, **changes):
    seen = {
        "encodings": truth.encodings,
        "soft_targets": truth.soft_targets,
        "images_held": len(split),
        **changes,
    }
    return view("encodings-holder", config, split, pool, **seen)


def search(seen, **changes):
    attack = KeyReplay(**{"seeds": 60, **changes})
    return attack.reconstruct(seen, np.random.default_rng(0), ignore_progress)


def assert_all_found(found, truth):
    scored = score_keys(found, {(1, "5"): truth})
    assert scored.correct == scored.named == scored.count == len(truth.key)
    assert found.diagnostics["seed"] == SEED


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"instahide__scope": "inside"},
        {"instahide__method": "mixup", "instahide__scope": "inside"},
        {"instahide__refresh": 3},
        {"train__mode": "update", "train__local_epochs": 2},
        {"instahide__coefficient_law": "dirichlet"},
        {"model__name": "cnn-dropout"},
    ],
)
def test_a_seed_gives_away_the_keys_of_every_kind_of_run(changes, split, pool):
    config = settings(**changes)
    rng = client_stream(SEED, "5", 1)
    _, _, truth = train(config, split, pool, rng)
    found = search(holder(config, split, pool, truth))
    assert_all_found(found, truth)
    client = SeededClient(
        "5", 1, 20, config.instahide, config.train, "model__name" in changes
    )
    assert torch.equal(client.coefficients(SEED, 3), truth.key.coefficients[3])


def test_masks_are_evidence_where_labels_are_missing(split, pool):
    config = settings()
    # A mask shows itself by neighbours that agree, which noise does not have.
    images = torch.nn.functional.interpolate(split.images[:, :, ::4, ::4].float(), 8)
    smooth = replace(split, images=images.to(torch.uint8))
    _, _, truth = train(config, smooth, pool, client_stream(SEED, "5", 1))
    seen = holder(config, smooth, pool, truth, soft_targets=None)
    assert_all_found(search(seen), truth)


def test_the_server_finds_keys_by_labels_that_gradients_give_away(split, pool):
    config = settings(train__batch_size=1, train__local_batches=1)
    sent, update, truth = train(config, split, pool, client_stream(SEED, "5", 1))
    seen = view(
        "honest-server",
        config,
        split,
        pool,
        parameters=sent,
        update=update.arrays,
        batch_sizes=step_sizes(config, 1),
        images_held=len(split),
    )
    seen = replace(seen, observations=(replace(seen.observations[0], num_examples=1),))
    if (truth.soft_targets > 0).sum() < 2:
        pytest.fail("both images are of one class: take another seed")
    found = search(seen)
    assert_all_found(found, truth)
    assert not found.recovered


def test_keys_of_the_operating_system_are_not_found(split, pool):
    config = settings()
    _, _, truth = train(config, split, pool, operating_system_stream())
    found = search(holder(config, split, pool, truth), seeds=300)
    assert found.keys == {}
    assert not found.recovered
    assert found.diagnostics["seeds_tried"] == 300
    assert score_keys(found, {(1, "5"): truth}).correct == 0


def test_a_range_that_begins_elsewhere_is_searched_from_there(split, pool):
    config = settings()
    _, _, truth = train(config, split, pool, client_stream(SEED, "5", 1))
    seen = holder(config, split, pool, truth)
    assert search(seen, first=30).diagnostics["seeds_tried"] == 8
    assert search(seen, first=38).keys == {}


@pytest.mark.parametrize("augmentation", [None, Augmentation(1, flip=True)])
def test_whole_keys_give_the_images_exactly(augmentation, split, pool, rng):
    encoder = build_encoder(EncoderConfig(num_mixed=4), pool, augmentation)
    rows = torch.arange(len(split)).repeat(6)
    batch, key = encoder.encode(rows, split, rng)
    opened = open_encodings(batch.images, key, split.statistics, pool, augmentation)
    truth = split.statistics.normalise(split.images)[opened.rows]
    assert (opened.images - truth).abs().max() < 1e-3


def test_a_soft_label_is_a_division_of_coefficients_among_classes():
    assert divisions(3, 2) == [(0, 0, 1), (0, 1, 0), (0, 1, 1)]
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    label = torch.tensor([0.6, 0.4])
    assert coefficients_fit(weights, label).tolist() == [True, False]
    assert not coefficients_fit(weights, torch.tensor([0.59, 0.41])).any()


@pytest.mark.parametrize(
    ("changes", "seen", "text"),
    [
        ({"instahide__method": "none"}, {}, "draws none"),
        ({}, {"images_held": 0}, r"set key_replay\.images-held"),
        ({}, {"encodings": None, "soft_targets": None}, "use encodings-holder"),
    ],
)
def test_what_cannot_be_attacked_says_why(changes, seen, text, split, pool):
    config = settings(**changes)
    _, _, truth = train(config, split, pool, client_stream(SEED, "5", 1))
    seen = holder(config, split, pool, truth, **seen)
    with pytest.raises(AttackError, match=text):
        search(seen)
