"""Whoever sees aggregates alone attacks all clients of a round as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from instahide_fl.aggregation.reduction import tree_mean
from instahide_fl.aggregation.weights import weigh_by_images
from instahide_fl.attacks.first_layer import FirstLayer
from instahide_fl.attacks.hard_labels import HardLabels
from instahide_fl.attacks.inverting_gradients import InvertingGradients
from instahide_fl.attacks.soft_labels import SoftLabels
from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.audit.scoring.score_reconstruction import score_reconstruction
from instahide_fl.audit.undefended import undefended_transcripts
from instahide_fl.errors import AttackError
from instahide_fl.transcript.aggregate import ALL_CLIENTS, truths_together
from instahide_fl.transcript.build_view import build_view
from instahide_fl.transcript.threat_model import threat_model
from tests.library.attack_views import recorded_round, settings


def attacked(attack, config, seen, truths, model="participant"):
    """Return what came of an attack, and its scores."""
    view = build_view(threat_model(model), config, [seen], {}, [])
    view.require(attack.name, attack.needs, attack.needs_on_aggregates())
    found = attack.reconstruct(view, np.random.default_rng(1), lambda *_: None)
    (one,) = found.recovered
    rng = np.random.default_rng(2)
    ground_truth = GroundTruth(truths, seen.statistics, 10)
    return one, score_reconstruction(found, ground_truth, rng)


@pytest.mark.parametrize("model", ["participant", "secure-aggregation-server"])
def test_the_sum_of_three_clients_gives_all_their_encodings_away(model):
    config = settings("inside", 2)
    seen, truths = recorded_round(config, clients=3)
    one, scores = attacked(FirstLayer(), config, seen, truths, model)
    assert (one.client, len(one.images)) == (ALL_CLIENTS, 6)
    there = torch.cat([truth.encodings for truth in truths.values()])
    errors = (one.images[:, None] - there).abs().amax((2, 3, 4)).amin(0)
    assert errors.max() < 1e-4
    assert scores.encoding.attack.count == 6
    assert scores.encoding.attack.ssim.mean == pytest.approx(1, abs=1e-3)


def test_clients_of_different_size_count_by_their_images():
    config = settings("none", 8)
    seen, truths = recorded_round(config, clients=2)
    small, few = recorded_round(config, clients=1, size=2)
    updates = [*seen.updates.values(), small.updates["0"]]
    both = {**seen.updates, "2": small.updates["0"]}
    seen = replace(seen, updates=both, aggregate=tree_mean(updates, weigh_by_images))
    one, _ = attacked(HardLabels(), config, seen, truths)
    labels = torch.cat([t.soft_targets for t in [*truths.values(), *few.values()]])
    assert one.classes.tolist() == labels.argmax(1).sort().values.tolist()


def test_a_sum_without_its_terms_is_of_as_many_images_as_the_settings_say():
    config = settings("inside", 2, train__clients_per_round=3)
    seen, truths = recorded_round(config, clients=3)
    sum_only = replace(seen, updates={})
    one, _ = attacked(FirstLayer(), config, sum_only, truths)
    assert len(one.images) == 6


def test_one_client_alone_in_a_round_is_as_exposed_as_to_the_server():
    config = settings("inside", 4, train__mode="update")
    seen, truths = recorded_round(config, clients=1)
    one, scores = attacked(FirstLayer(), config, seen, truths)
    there = truths[1, "0"].encodings
    assert (one.images[:, None] - there).abs().amax((2, 3, 4)).amin(0).max() < 1e-3
    assert scores.encoding.attack.count == 4


@pytest.mark.parametrize(
    ("attack", "changes", "text"),
    [
        (FirstLayer(), {"train.mode": "update"}, "train.clients-per-round = 1"),
        (FirstLayer(), {"server.aggregation": "median"}, "weighted-mean"),
        (SoftLabels(), {}, "the 3 clients of the round together sent .* of one client"),
        (
            InvertingGradients(iterations=1),
            {"model.name": "strided-cnn", "model.normalization": "local-batch"},
            "each client's batch by itself",
        ),
    ],
)
def test_an_aggregate_that_is_no_gradient_of_one_batch_is_refused(
    attack, changes, text
):
    config = settings("inside", 2).with_values(changes)
    seen, truths = recorded_round(config, clients=3)
    with pytest.raises(AttackError, match=text):
        attacked(attack, config, seen, truths)


def test_the_undefended_reference_has_an_aggregate_of_its_own():
    config = settings("inside", 1)
    seen, truths = recorded_round(config, clients=2)
    (plain,), truths = undefended_transcripts(config, [seen], truths)
    one, _ = attacked(FirstLayer(), config, plain, truths)
    there = torch.cat([truth.encodings for truth in truths.values()])
    assert (one.images[:, None] - there).abs().amax((2, 3, 4)).amin(0).max() < 1e-4


def test_an_image_keeps_its_row_when_rounds_are_joined():
    config = settings("inside", 2)
    _, first = recorded_round(config, clients=2, number=1)
    _, second = recorded_round(config, clients=2, number=2)
    joined = truths_together({**second, **first})
    assert list(joined) == [(1, ALL_CLIENTS), (2, ALL_CLIENTS)]
    image = {}
    for truth in joined.values():
        assert truth.rows.diff().gt(0).all()
        mixed = truth.images[truth.components].flatten(0, 1)
        rows = truth.key.private_index.flatten().tolist()
        for row, one in zip(rows, mixed, strict=True):
            assert torch.equal(image.setdefault(row, one), one)
    assert max(image) >= 4
