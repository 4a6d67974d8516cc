from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from instahide_fl.attacks.carlini.assignment import assign
from instahide_fl.attacks.carlini.attack import Carlini
from instahide_fl.attacks.carlini.clusters import Clusters, cluster
from instahide_fl.attacks.carlini.decoding_problem import DecodingProblem
from instahide_fl.attacks.carlini.hypotheses import likely_links
from instahide_fl.attacks.carlini.label_entries import LabelEntries
from instahide_fl.attacks.carlini.matching_pursuit import (
    PublicMatchingPursuit,
    PublicPart,
)
from instahide_fl.attacks.carlini.stage_cache import StageCache
from instahide_fl.attacks.decoding.mixtures import largest_pixel, public_part
from instahide_fl.audit.scoring.ground_truth import GroundTruth
from instahide_fl.audit.scoring.link_scores import score_links
from instahide_fl.audit.scoring.score_reconstruction import score_reconstruction
from instahide_fl.config import Config
from instahide_fl.data.datasets import load_dataset
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import threat_model
from instahide_fl.transcript.truth import RecordingEncoder
from instahide_fl.transcript.view import AdversaryView, Observation
from instahide_fl.types import PrivateSplit
from tests.real_data import CIFAR10

CLASSES = 10


def photographs(first, count, size=16):
    """Patches of photographs, which differ from call to call."""
    return MixingPool.photos(size, 3).sample(first + count)[first:]


def observe(split, pool, times, rng, **changes):
    """Return what a holder of encodings has, and the truth."""
    values = {"num-mixed": 4, "scope": "cross"} | changes
    config = Config.from_run_config({f"instahide.{k}": v for k, v in values.items()})
    recording = RecordingEncoder(build_encoder(config.instahide, pool))
    for _ in range(times):
        recording.encode(torch.from_numpy(rng.permutation(len(split))), split, rng)
    truth = recording.truth(1, "0", split)
    seen = Observation(
        *(1, "0", 0, 1.0, "gradient"),
        encodings=truth.encodings,
        soft_targets=truth.soft_targets,
    )
    view = AdversaryView(
        *(threat_model("encodings-holder"), config, split.statistics),
        *(tuple(split.images.shape[1:]), split.num_classes, (seen,), (), pool),
    )
    return view, truth


@pytest.fixture(scope="module")
def pool():
    return MixingPool.from_images(photographs(0, 1500))


@pytest.fixture(scope="module")
def split():
    return PrivateSplit(photographs(1500, 20), torch.arange(20) % CLASSES, CLASSES)


def attack(view, stages="", **settings):
    quick = Carlini(rounds=3, images=20, stages=str(stages))
    quick = quick.model_copy(update=settings)
    return quick.reconstruct(view, np.random.default_rng(0), lambda *_: None)


def with_encodings(view, encodings):
    (seen,) = view.observations
    return replace(view, observations=(replace(seen, encodings=encodings),))


def true_links(entries, truth, split):
    """Return the image of each label entry of encodings that share none, i64[M,2]."""
    mixed = truth.components[entries.encodings[entries.unshared[:, 0]]]
    classes = entries.classes[entries.unshared]
    first = split.targets[mixed[:, 0]] == classes[:, 0]
    return torch.where(first[:, None], mixed, mixed.flip(1))


def entries_of(truth, private=2):
    return LabelEntries.of(truth.encodings, truth.soft_targets, private)


def problem_of(entries, split):
    order = entries.unshared
    prior = torch.zeros(*order.shape, len(split))
    other_class = entries.classes[order][..., None] != split.targets
    return DecodingProblem(
        entries.images[entries.encodings[order[:, 0]]],
        entries.classes[order],
        entries.coefficients[order],
        prior.masked_fill(other_class, -torch.inf),
        split.targets,
        largest_pixel(split.statistics),
    )


@pytest.mark.parametrize(
    ("settings", "changes", "least"),
    [
        ({}, {}, 0.9),
        ({"search_pool": False}, {}, 0.5),
        ({"images": 0}, {}, 0.5),
        ({}, {"scope": "inside", "num-mixed": 2}, 0.9),
    ],
)
def test_images_come_back_without_any_key(rng, split, pool, settings, changes, least):
    view, truth = observe(split, pool, 40, rng, **changes)
    found = attack(view, **settings)
    ground_truth = GroundTruth({(1, "0"): truth}, split.statistics, CLASSES)
    scores = score_reconstruction(found, ground_truth, rng)
    assert scores.private.attack.ssim.mean > least
    assert scores.private.matched_noise.ssim.mean < 0.2
    (recovered,) = found.recovered
    figures = score_links(recovered.links, [truth])
    assert figures["link_accuracy"] > 0.7
    assert figures["images_found"] >= 18
    assert figures["pair_auc"] > 0.8
    shown = recovered.weights.amax(1) > 0
    assert shown.all()


def test_a_seed_repeats_bit_for_bit_and_stages_are_resumed(
    rng, split, pool, tmp_path, monkeypatch
):
    view, _ = observe(split, pool, 25, rng)
    (first,) = attack(view, tmp_path, rounds=1).recovered
    (again,) = attack(view, rounds=1).recovered
    assert torch.equal(first.images, again.images)

    monkeypatch.setattr(
        "instahide_fl.attacks.carlini.client_attack.cluster", lambda *_: 1 / 0
    )
    (resumed,) = attack(view, tmp_path, rounds=1).recovered
    assert torch.equal(first.images, resumed.images)
    with pytest.raises(ZeroDivisionError):
        attack(view, tmp_path, rounds=1, images=19)


def test_a_damaged_stage_is_named_and_a_stale_one_replaced(tmp_path):
    stages = StageCache(tmp_path, "settings")
    stages.get_or_compute("links", lambda: {"x": torch.ones(2)})
    other = StageCache(tmp_path, "other settings")
    assert other.get_or_compute("links", lambda: {"x": torch.zeros(2)})["x"].sum() == 0
    (tmp_path / "links.safetensors").write_bytes(b"torn")
    with pytest.raises(AttackError, match=r"links\.safetensors is damaged.*delete"):
        other.get_or_compute("links", lambda: {})


def test_too_few_encodings_are_not_enough_information(rng, split, pool):
    view, _ = observe(split, pool, 1, rng)
    with pytest.raises(AttackError, match="not enough information"):
        attack(view)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))]
)
def test_noise_is_not_enough_information(split, pool, seed):
    rng = np.random.default_rng(seed)
    view, truth = observe(split, pool, 20, rng)
    noise = torch.from_numpy(
        rng.standard_normal(truth.encodings.shape, dtype=np.float32)
    )
    with pytest.raises(AttackError, match="held out do not fit"):
        attack(with_encodings(view, noise), rounds=1)


def test_encodings_that_share_nothing_are_not_enough_information(rng, pool):
    times, shown = 20, []
    for number in range(times):
        fresh = photographs(1500 + 20 * number, 20)
        split = PrivateSplit(fresh, torch.arange(20) % CLASSES, CLASSES)
        view, truth = observe(split, pool, 1, rng)
        shown.append(truth)
    encodings = torch.cat([one.encodings for one in shown])
    labels = torch.cat([one.soft_targets for one in shown])
    (seen,) = view.observations
    view = replace(view, observations=(replace(seen, soft_targets=labels),))
    with pytest.raises(AttackError, match="held out do not fit"):
        attack(with_encodings(view, encodings), rounds=1)


def test_labels_and_signs_are_needed(rng, split, pool):
    view, _ = observe(split, pool, 1, rng)
    (seen,) = view.observations
    unlabelled = replace(seen, soft_targets=None)
    with pytest.raises(AttackError, match="no soft labels"):
        attack(replace(view, observations=(unlabelled,)))
    view, _ = observe(split, pool, 1, rng, method="mixup")
    with pytest.raises(AttackError, match="mixup_recovery attacks"):
        attack(view)


def test_labels_tell_how_many_images_each_class_has(rng, pool):
    targets = torch.tensor([0] * 9 + [1] * 6 + [2] * 4 + [3])
    split = PrivateSplit(photographs(1500, 20), targets, CLASSES)
    _, truth = observe(split, pool, 50, rng)
    assert entries_of(truth).images_of_each_class(20).tolist() == [9, 6, 4, 1] + 6 * [0]


def test_labels_tell_coefficients_and_split_sums_evenly():
    labels = torch.tensor([[0.2, 0.5, 0.0], [0.0, 0.6, 0.0], [0.1, 0.5, 0.4]])
    entries = LabelEntries.of(torch.zeros(3, 1, 2, 2), labels, 3)
    expected = [[0.25, 0.2, 0.25], [0.2, 0.2, 0.2], [0.5, 0.4, 0.1]]
    assert torch.allclose(entries.private_coefficients, torch.tensor(expected))


def test_clusters_and_assignment_follow_clear_similarities(rng, split, pool):
    _, truth = observe(split, pool, 20, rng)
    entries = entries_of(truth)
    vectors = torch.zeros(len(truth.encodings), 20).scatter_(1, truth.components, 1.0)
    used = torch.ones(len(vectors), dtype=torch.bool)
    used[::7] = False
    found = cluster(entries, vectors, used, 20, rng)
    links = assign(entries, found)
    for some in (used[entries.encodings], ~used[entries.encodings]):
        members = truth.components[entries.encodings[some]]
        own = split.targets[members] == entries.classes[some][:, None]
        image = (members * own).amax(1)
        same = links[some][:, None] == links[some]
        assert ((image[:, None] == image) == same).float().mean() > 0.97


def test_known_images_tell_the_links_and_the_public_part(rng, split, pool):
    view, truth = observe(split, pool, 20, rng)
    entries = entries_of(truth)
    problem = problem_of(entries, split)
    images = split.statistics.normalise(split.images).flatten(1)
    expected = true_links(entries, truth, split)
    rows = entries.encodings[entries.unshared[:, 0]]
    key = truth.key.select(rows)

    pursuit = PublicMatchingPursuit(pool, view.config.instahide, rng)
    mixed = problem.private_part(images, expected)
    found = pursuit.search_given_private(
        *(problem.encodings, problem.coefficients, mixed),
        torch.full((len(rows),), 1e-3),
    )
    hits = (found.index[:, :, None] == key.public_index[:, None]).any(2)
    assert hits[found.index >= 0].float().mean() > 0.95
    assert hits.float().mean() > 0.6
    public = public_part(
        pool.statistics.normalise(pool.images), key.public_index, key.coefficients
    )
    error = (found.total - public.flatten(1)).square().mean()
    assert error < 0.1 * public.square().mean()

    start = problem.prior.argmax(2)
    links, scores = likely_links(problem, images, start, torch.full((20,), 0.02), found)
    assert (links[:, 0] == expected).float().mean() > 0.95
    assert (scores[:, 0] >= scores[:, 1]).all()


def test_squares_find_the_largest_public_image(rng, split, pool):
    view, truth = observe(split, pool, 20, rng)
    pursuit = PublicMatchingPursuit(pool, view.config.instahide, rng)
    entries = entries_of(truth)
    found = pursuit.search_blind(truth.encodings, entries.private_coefficients)
    first, sure = found.index[:, 0], found.index[:, 0] >= 0
    hits = (first[:, None] == truth.key.public_index).any(1)
    assert sure.float().mean() > 0.4
    assert hits[sure].float().mean() > 0.8
    assert PublicPart.unknown(torch.ones(3), 5).has_images is False


def test_clusters_are_classes_of_their_own():
    scores = torch.tensor([[0.1, -torch.inf], [-torch.inf, 0.9]])
    entries = LabelEntries(
        *(torch.zeros(1, 1, 2, 2), torch.tensor([[0.5, 0.2]]), 2),
        *(torch.tensor([0, 0]), torch.tensor([0, 1])),
    )
    assert assign(entries, Clusters(torch.tensor([0, 1]), scores)).tolist() == [0, 1]


@pytest.mark.long
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="needs CIFAR-10")
def test_photographs_come_back_without_any_key(rng):
    config = Config.from_run_config({"data.dataset": f"hf:{CIFAR10}"})
    dataset = load_dataset(config.data)
    rows = torch.from_numpy(rng.permutation(len(dataset.test))[:20])
    split = PrivateSplit(
        *(dataset.test.images[rows], dataset.test.targets[rows], 10),
        dataset.train.statistics,
    )
    pool = MixingPool.from_images(MixingPool.photos().sample(3000))
    view, truth = observe(split, pool, 30, rng, **{"num-mixed": 6})
    found = attack(view)
    ground_truth = GroundTruth({(1, "0"): truth}, split.statistics, 10)
    scores = score_reconstruction(found, ground_truth, rng)
    assert scores.private.attack.ssim.mean > 0.9
