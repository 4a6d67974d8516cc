"""Who was trained on, from losses and updates: measured, scored and judged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from instahide_fl.attacks.base import MembershipGuess, Reconstruction
from instahide_fl.attacks.membership_updates.attack import MembershipUpdates
from instahide_fl.attacks.membership_updates.measurements import CandidateMeasurements
from instahide_fl.attacks.membership_updates.scores import (
    against_other_clients,
    mean_by_client,
)
from instahide_fl.audit.membership import Membership, draw_candidates
from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.audit.scoring.score_reconstruction import score_reconstruction
from instahide_fl.audit.scoring.verdict import LEAKS, NO_LEAK, verdict
from instahide_fl.config import Config, ModelConfig
from instahide_fl.data.federated_data import load_federated_data
from instahide_fl.errors import AttackError
from instahide_fl.models.arrays import get_arrays, shared_buffers
from instahide_fl.models.layout import accept_any_layout
from instahide_fl.models.registry import build_model
from instahide_fl.transcript.build_view import build_view
from instahide_fl.transcript.candidates import CandidateImages
from instahide_fl.transcript.threat_model import threat_model
from instahide_fl.types import ChannelStatistics
from tests.library.attack_views import SHAPE, recorded_round
from tests.library.attack_views import settings as run_settings

STATISTICS = ChannelStatistics((0.5,) * 3, (0.25,) * 3)
HELD_OUT = {"record.rounds": "1", "record.truth": True, "record.holdout-share": 0.2}


def some_candidates(count, seed=0):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (count, *SHAPE), np.uint8))
    return CandidateImages(images, torch.from_numpy(rng.integers(0, 10, count)))


@settings(deadline=None)
@given(st.integers(3, 8), st.integers(0, 10_000), st.floats(-1e3, 1e3))
def test_a_client_is_held_against_the_others_alone(clients, seed, offset):
    values = np.random.default_rng(seed).normal(offset, 1, (clients, 5))
    exceeding = against_other_clients(torch.from_numpy(values)).numpy()
    for client in range(clients):
        others = np.delete(values, client, axis=0)
        deviation = np.sqrt(others.var(0, ddof=1) * clients / (clients - 1))
        distance = (values[client] - others.mean(0)) / deviation
        expected = norm.ppf(t.cdf(distance, clients - 2))
        assert exceeding[client] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_client_like_the_others_scores_as_a_normal_variable_does(rng):
    scores = against_other_clients(torch.from_numpy(rng.normal(size=(4, 20_000))))
    assert float(scores.mean()) == pytest.approx(0, abs=0.02)
    assert float(scores.std()) == pytest.approx(1, abs=0.02)
    alike = against_other_clients(torch.ones(4, 2, dtype=torch.float64))
    assert alike.tolist() == [[0.0, 0.0]] * 4


def test_clients_count_in_the_rounds_that_they_took_part_in():
    first = ("a", "b"), torch.tensor([[1.0], [2.0]])
    clients, mean = mean_by_client([first, (("b",), torch.tensor([[4.0]]))])
    assert clients == ("a", "b")
    assert mean.tolist() == [[1.0], [3.0]]


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(name="strided-cnn", sign_invariant=True),
        ModelConfig(name="small-cnn", width=4, normalization="batch"),
    ],
)
def test_losses_and_cosines_are_those_of_one_image_after_another(model):
    network = build_model(model, SHAPE, 10, 0).eval()
    accept_any_layout(network)
    arrays, candidates = get_arrays(network), some_candidates(5)
    measurements = CandidateMeasurements(network, STATISTICS, candidates)
    rng = torch.Generator().manual_seed(0)
    directions = torch.randn(2, len(measurements.flat(arrays)), generator=rng)
    losses = F.softplus(-measurements.confidences(arrays))
    cosines = measurements.cosines(arrays, directions)
    for row, image in enumerate(STATISTICS.normalise(candidates.images)):
        loss = F.cross_entropy(network(image[None]), candidates.targets[row, None])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        expected = F.cosine_similarity(directions, flat[None])
        assert float(losses[row]) == pytest.approx(loss.item(), abs=1e-5)
        assert cosines[:, row].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_step_moves_parameters_by_its_scale_and_statistics_by_themselves():
    model = ModelConfig(name="small-cnn", width=4, normalization="batch")
    network = build_model(model, SHAPE, 10, 0)
    arrays = get_arrays(network)
    update = {name: torch.ones_like(array) for name, array in arrays.items()}
    measurements = CandidateMeasurements(network, STATISTICS, some_candidates(1))
    stepped = measurements.stepped(arrays, update, -0.5)
    for name, array in arrays.items():
        moved = 1.0 if name in shared_buffers(network) else -0.5
        assert torch.allclose(stepped[name], array + moved)


def test_candidates_are_of_both_kinds_in_random_order_and_alike_in_class():
    config = Config().with_values({**HELD_OUT, "data.train-rows": "0:600"})
    data = load_federated_data(config)
    drawn = draw_candidates(data.dataset, data.partition, config.seed)
    again = draw_candidates(data.dataset, data.partition, config.seed)
    assert torch.equal(drawn.candidates.images, again.candidates.images)
    member, targets = drawn.is_member, drawn.candidates.targets
    assert targets[member].bincount().equal(targets[~member].bincount())
    assert 0.3 < float(member[: len(member) // 2].float().mean()) < 0.7
    for row in range(0, len(targets), 40):
        owner = drawn.owners[row]
        rows = (
            data.partition[int(owner)]
            if owner
            else data.dataset.held_out.rows["membership"]
        )
        same = data.dataset.train.images[rows] == drawn.candidates.images[row]
        assert bool(same.flatten(1).all(dim=1).any())
        assert bool(member[row]) == bool(owner)


def attacked(config, adversary, clients=4, rounds=2, **attack_settings):
    recorded = [recorded_round(config, clients, 4, n + 1) for n in range(rounds)]
    transcripts = [seen for seen, _ in recorded]
    truths = {
        key: truth
        for _, round_truths in recorded
        for key, truth in round_truths.items()
    }
    members = torch.cat([truths[1, str(c)].images for c in range(clients)])
    targets = torch.cat([truths[1, str(c)].targets for c in range(clients)])
    others = some_candidates(len(members), seed=99)
    candidates = CandidateImages(
        torch.cat([members, others.images]), torch.cat([targets, targets])
    )
    view = build_view(
        threat_model(adversary), config, transcripts, truths, [], candidates
    )
    attack = MembershipUpdates(**attack_settings)
    attack.check(view)
    rng = np.random.default_rng(0)
    guess = attack.reconstruct(view, rng, lambda *_: None).membership
    owners = [
        name
        for c in range(clients)
        for name in [str(c)] * len(truths[1, str(c)].images)
    ]
    is_member = torch.arange(len(candidates)) < len(members)
    owners += [""] * len(others)
    return guess, Membership(candidates, is_member, tuple(owners)), truths


@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_a_clients_update_gives_its_few_images_away(mode, rng):
    config = run_settings("none", 4, train__mode=mode)
    guess, membership, truths = attacked(config, "honest-server")
    truth = GroundTruth(truths, STATISTICS, 10, membership=membership)
    found = Reconstruction("membership", (), membership=guess)
    scores = score_reconstruction(found, truth, rng)
    assert scores.membership.metrics["cosine"]["auc"] > 0.95
    assert scores.membership.metrics["update_cosine"]["auc"] > 0.9
    by_client = scores.membership.by_client
    assert by_client["update_loss"]["auc"] > 0.95
    assert by_client["update_cosine"]["owner_share"] > 0.9
    assert verdict(threat_model("honest-server"), scores) == LEAKS
    written = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert set(written["metrics"]["membership"]["scores"]) == {
        *("loss", "loss_drop", "cosine", "update_loss", "update_cosine")
    }


def test_who_sees_sums_gets_losses_and_the_cosine_of_the_sum():
    config = run_settings("none", 4)
    guess, membership, _ = attacked(config, "participant")
    assert set(guess.scores) == {"loss", "loss_drop", "cosine"}
    assert not guess.by_client
    member = membership.is_member
    cosine = guess.scores["cosine"]
    assert float(cosine[member].mean()) > float(cosine[~member].mean())


def test_noise_is_no_leak_and_a_network_at_chance_is_pointed_out(rng):
    config = run_settings("none", 4)
    _, membership, truths = attacked(config, "honest-server", rounds=1)
    scores = torch.from_numpy(rng.normal(size=len(membership.candidates)))
    guess = MembershipGuess({"loss": scores}, "loss")
    at_chance = Membership(
        candidates=membership.candidates,
        is_member=membership.is_member,
        owners=membership.owners,
        test_accuracy=0.1,
        chance_bound=0.12,
    )
    truth = GroundTruth(truths, STATISTICS, 10, membership=at_chance)
    found = Reconstruction("membership", (), membership=guess)
    scored = score_reconstruction(found, truth, rng)
    assert verdict(threat_model("honest-server"), scored) == NO_LEAK
    assert any("learned nothing (test accuracy 10.0%)" in c for c in scored.caveats)
    assert any("no false positive at all" in c for c in scored.caveats)


def test_what_cannot_be_asked_or_decided_is_refused():
    config = run_settings("none", 4)
    with pytest.raises(
        AttackError, match=r"'update_loss' .*\(loss, loss_drop, cosine\)"
    ):
        attacked(config, "participant", decided_by="update_loss")
    with pytest.raises(AttackError, match="decided-by = 'loss_drop'"):
        attacked(config, "honest-server", rounds=1, decided_by="loss_drop")
    seen, truths = recorded_round(config, 3)
    view = build_view(threat_model("honest-server"), config, [seen], truths, [])
    with pytest.raises(AttackError, match=r"record\.holdout-share=0\.1"):
        MembershipUpdates().reconstruct(view, np.random.default_rng(0), print)
