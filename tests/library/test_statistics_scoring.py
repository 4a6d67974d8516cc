"""Statistics of batches are held against those of encodings and of private images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from instahide_fl.attacks.batch_statistics import BatchStatistics
from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.audit.scoring.score_reconstruction import score_reconstruction
from instahide_fl.audit.scoring.statistics_scores import score_statistics
from instahide_fl.audit.scoring.verdict import LEAKS, NO_LEAK, NO_VERDICT, verdict
from instahide_fl.audit.undefended import undefended_config, undefended_transcripts
from instahide_fl.transcript.build_view import build_view
from instahide_fl.transcript.threat_model import threat_model
from tests.library.attack_views import recorded_round, settings

SERVER = threat_model("honest-server")
BATCH_NORM = {"model.name": "strided-cnn", "model.normalization": "batch"}


def scored(config, seen, truths, change=0.0):
    """Score the attack, with all that it recovers moved by `change`."""
    view = build_view(SERVER, config, [seen], {}, [])
    rng = np.random.default_rng(0)
    found = BatchStatistics().reconstruct(view, rng, lambda *_: None)
    recovered = tuple(
        replace(one, statistics={k: v + change for k, v in one.statistics.items()})
        for one in found.recovered
    )
    found = replace(found, recovered=recovered)
    ground_truth = GroundTruth(truths, seen.statistics, 10)
    errors = score_statistics(found, ground_truth, config, [seen])
    return replace(score_reconstruction(found, ground_truth, rng), statistics=errors)


@pytest.mark.parametrize("mode", ["gradient", "update"])
@pytest.mark.parametrize("method", ["none", "inside"])
def test_statistics_of_plain_batches_leak_and_those_of_encodings_do_not(method, mode):
    config = settings(method, 8, train__mode=mode).with_values(BATCH_NORM)
    seen, truths = recorded_round(config, clients=3, size=8)
    (plain,), bare = undefended_transcripts(config, [seen], truths)
    scores, undefended = (
        scored(config, seen, truths),
        scored(undefended_config(config), plain, bare),
    )
    assert scores.statistics.encoding.max() < 1e-4
    assert undefended.statistics.private.max() < 1e-4
    expected = LEAKS if method == "none" else NO_LEAK
    assert verdict(SERVER, scores, undefended) == expected
    written = scores.to_json()["metrics"]["statistics"]
    assert written["encoding"]["max_error"] < 1e-4
    assert written["count"] == 3 * 2 * (16 + 32 + 64)


def test_an_attack_that_is_off_has_no_verdict():
    config = settings("none", 8).with_values(BATCH_NORM)
    seen, truths = recorded_round(config, clients=3, size=8)
    scores = scored(config, seen, truths, change=0.3)
    torch.testing.assert_close(
        scores.statistics.encoding,
        torch.full_like(scores.statistics.encoding, 0.3),
        atol=1e-4,
        rtol=0,
    )
    assert verdict(SERVER, scores, scores) == NO_VERDICT


def test_a_client_alone_is_held_against_what_it_was_sent():
    config = settings("none", 8).with_values(BATCH_NORM)
    seen, truths = recorded_round(config, clients=1, size=8)
    assert verdict(SERVER, scored(config, seen, truths)) == LEAKS


def test_statistics_over_several_batches_are_averaged_as_the_network_does():
    changes = {**BATCH_NORM, "train.local-batches": 3}
    config = settings("none", 2).with_values(changes)
    seen, truths = recorded_round(config, clients=2, size=6)
    assert scored(config, seen, truths).statistics.encoding.max() < 1e-4


def test_statistics_over_local_steps_are_not_scored():
    changes = {**BATCH_NORM, "train.mode": "update"}
    config = settings("none", 2).with_values(changes)
    seen, truths = recorded_round(config, clients=2, size=6)
    scores = scored(config, seen, truths)
    assert "moved between" in scores.to_json()["metrics"]["statistics"]["absent"]
