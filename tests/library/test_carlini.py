from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from instahide_fl.attacks.carlini import Carlini
from instahide_fl.attacks.clustering.assignment import assign
from instahide_fl.attacks.clustering.clusters import Clusters, cluster
from instahide_fl.attacks.clustering.public_search import PublicSearch
from instahide_fl.attacks.clustering.refinement import Problem, likely_links
from instahide_fl.attacks.clustering.slots import Slots
from instahide_fl.attacks.clustering.stages import Stages
from instahide_fl.attacks.decoding.mixtures import largest_pixel
from instahide_fl.attacks.link_scoring import score_links
from instahide_fl.attacks.links import LinkedEncodings
from instahide_fl.attacks.scoring import score
from instahide_fl.config import Config
from instahide_fl.data.datasets import load_dataset
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.errors import AttackError
from instahide_fl.transcript.threat_model import (
    AdversaryView,
    Observation,
    threat_model,
)
from instahide_fl.transcript.truth import RecordingEncoder
from instahide_fl.types import PrivateSplit

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
CLASSES = 10


def photographs(first, count):
    """Patches of photographs, 16 x 16, which differ from call to call."""
    return MixingPool.photos(16, 3).sample(first + count)[first:]


def observe(split, pool, times, rng, **changes):
    """Return what a holder of encodings has, and the truth."""
    values = {"num-mixed": 4, "scope": "cross"} | changes
    config = Config.from_run_config({f"instahide.{k}": v for k, v in values.items()})
    recording = RecordingEncoder(build_encoder(config.instahide, pool))
    for _ in range(times):
        recording.encode(torch.from_numpy(rng.permutation(len(split))), split, rng)
    truth = recording.truth(1, "0", split)
    seen = Observation(
        1,
        "0",
        0,
        1.0,
        "gradient",
        encodings=truth.encodings,
        soft_targets=truth.soft_targets,
    )
    view = AdversaryView(
        threat_model("encodings-holder"),
        config,
        split.statistics,
        tuple(split.images.shape[1:]),
        split.num_classes,
        (seen,),
        (),
        pool,
    )
    return view, truth


@pytest.fixture
def pool():
    return MixingPool.from_images(photographs(0, 300))


@pytest.fixture
def split():
    return PrivateSplit(photographs(300, 20), torch.arange(20) % CLASSES, CLASSES)


def attack(view, stages="", **settings):
    quick = Carlini(steps=2, pairs=16, rounds=3, images=20, stages=str(stages))
    quick = quick.model_copy(update=settings)
    return quick.reconstruct(view, np.random.default_rng(0), lambda *_: None)


@pytest.fixture
def learned(monkeypatch):
    """Stand in for a network that was trained for minutes: right more than wrong."""

    def prepare(truth, split, noise=1.2):
        slots = Slots.of(truth.encodings, truth.soft_targets, 2)
        generator = torch.Generator().manual_seed(0)
        directions = torch.eye(len(split), 32)[image_of_each_slot(slots, truth, split)]
        vectors = directions + noise * 32**-0.5 * torch.randn(
            directions.shape, generator=generator
        )
        found = torch.nn.functional.normalize(vectors, dim=1)
        monkeypatch.setattr("instahide_fl.attacks.carlini.embed", lambda *_: found)

    return prepare


def image_of_each_slot(slots, truth, split):
    members = truth.components[slots.encodings]
    own = (split.targets[members] == slots.classes[:, None]).float().argmax(1)
    return members.gather(1, own[:, None])[:, 0]


def problem_of(truth, split, pool=None, search=None):
    slots = Slots.of(truth.encodings, truth.soft_targets, 2)
    order = slots.clear
    prior = torch.zeros(*order.shape, len(split))
    return slots, Problem(
        slots.images[slots.encodings[order[:, 0]]],
        slots.classes[order],
        slots.coefficients[order],
        prior.masked_fill(slots.classes[order][..., None] != split.targets, -torch.inf),
        split.targets,
        0.5,
        search,
        largest_pixel(split.statistics),
    )


def true_links(slots, truth, split):
    """Return the image of each slot of the clear encodings."""
    mixed = truth.components[slots.encodings[slots.clear[:, 0]]]
    classes = slots.classes[slots.clear]
    first = split.targets[mixed[:, 0]] == classes[:, 0]
    return torch.where(first[:, None], mixed, mixed.flip(1))


def test_images_come_back_without_any_key(rng, split, pool, learned):
    view, truth = observe(split, pool, 25, rng)
    learned(truth, split)
    found = attack(view)
    scores = score(found, {(1, "0"): truth}, split.statistics, CLASSES, rng)
    assert scores.private.attack.ssim.mean > 0.7
    assert scores.private.no_information.ssim.mean < 0.3
    (recovered,) = found.recovered
    figures = score_links(recovered.links, [truth])
    assert figures["link_accuracy"] > 0.8
    assert figures["images_found"] == figures["images_in_truth"] == 20
    assert figures["pair_auc"] > 0.8


def test_a_seed_repeats_bit_for_bit_and_stages_are_resumed(
    rng, split, pool, tmp_path, monkeypatch
):
    monkeypatch.setattr("instahide_fl.attacks.carlini.LEAST_EVIDENCE", -np.inf)
    view, _ = observe(split, pool, 12, rng)
    (first,) = attack(view, tmp_path, rounds=1).recovered
    (again,) = attack(view, rounds=1).recovered
    assert torch.equal(first.images, again.images)

    monkeypatch.setattr("instahide_fl.attacks.carlini.train", lambda *_: 1 / 0)
    (resumed,) = attack(view, tmp_path, rounds=1).recovered
    assert torch.equal(first.images, resumed.images)
    with pytest.raises(ZeroDivisionError):
        attack(view, tmp_path, rounds=1, steps=3)


def test_a_damaged_stage_is_named_and_a_stale_one_replaced(tmp_path):
    stages = Stages(tmp_path, "settings")
    stages.result("links", lambda: {"x": torch.ones(2)})
    other = Stages(tmp_path, "other settings")
    assert other.result("links", lambda: {"x": torch.zeros(2)})["x"].sum() == 0
    (tmp_path / "links.safetensors").write_bytes(b"torn")
    with pytest.raises(AttackError, match=r"links\.safetensors is damaged.*delete"):
        other.result("links", lambda: {})


def test_too_few_encodings_are_not_enough_information(rng, split, pool):
    view, _ = observe(split, pool, 1, rng)
    with pytest.raises(AttackError, match="not enough information"):
        attack(view)


def test_noise_is_not_enough_information(rng, split, pool):
    view, _ = observe(split, pool, 20, rng)
    (seen,) = view.observations
    object.__setattr__(seen, "encodings", torch.randn_like(seen.encodings))
    with pytest.raises(AttackError, match="held out do not fit"):
        attack(view)


def test_labels_are_needed(rng, split, pool):
    view, truth = observe(split, pool, 1, rng)
    unlabelled = Observation(1, "0", 0, 1.0, "gradient", encodings=truth.encodings)
    object.__setattr__(view, "observations", (unlabelled,))
    with pytest.raises(AttackError, match="no soft labels"):
        attack(view)


def test_labels_tell_how_many_images_each_class_has(rng, pool):
    targets = torch.tensor([0] * 9 + [1] * 6 + [2] * 4 + [3])
    split = PrivateSplit(photographs(300, 20), targets, CLASSES)
    _, truth = observe(split, pool, 50, rng)
    slots = Slots.of(truth.encodings, truth.soft_targets, 2)
    assert slots.images_of_each_class(20).tolist() == [9, 6, 4, 1] + 6 * [0]


def test_clusters_and_assignment_follow_a_clear_embedding(rng, split, pool):
    _, truth = observe(split, pool, 20, rng)
    slots = Slots.of(truth.encodings, truth.soft_targets, 2)
    image = image_of_each_slot(slots, truth, split)
    directions = torch.nn.functional.normalize(torch.randn(20, 16), dim=1)
    embedding = directions[image]
    found = cluster(slots, embedding, torch.tensor([2] * CLASSES), rng)
    scores = found.scores(slots, embedding)
    links = assign(slots, found, scores)
    evidence = LinkedEncodings(
        slots.encodings,
        slots.classes,
        embedding,
        scores.topk(5, 0).indices.T,
        links,
        links,
    )
    figures = score_links(evidence, [truth])
    assert figures["link_accuracy"] > 0.97
    assert figures["cluster_purity"] == 1
    assert figures["images_found"] == 20


def test_known_images_tell_the_links_and_the_public_part(rng, split, pool):
    _, truth = observe(split, pool, 20, rng)
    slots, problem = problem_of(truth, split)
    images = split.statistics.normalise(split.images).flatten(1)
    wanted = true_links(slots, truth, split)
    start = wanted.flip(0)
    start = torch.where(
        split.targets[start] == problem.classes, start, problem.prior.argmax(2)
    )
    found, _ = likely_links(problem, images, start, 0.02)
    assert (found[:, 0] == wanted).float().mean() > 0.75

    search = PublicSearch(pool, 2, 0.65, rng)
    private = (problem.coefficients[..., None] * images[wanted]).sum(1)
    public = search.find(
        problem.magnitudes, private, problem.rest, torch.full((len(private),), 1e-3)
    )
    key = truth.key.public_index[slots.encodings[slots.clear[:, 0]]]
    hit = (key[:, :, None] == public.index[:, None]).any(2)
    assert hit.float().mean() > 0.8


def test_clusters_are_classes_of_their_own(rng):
    clusters = Clusters(torch.tensor([0, 1]), torch.eye(2))
    slots = Slots(
        torch.zeros(1, 1, 2, 2),
        torch.tensor([[0.5, 0.2]]),
        2,
        torch.tensor([0, 0]),
        torch.tensor([0, 1]),
    )
    scores = clusters.scores(slots, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert scores.isfinite().tolist() == [[True, False], [False, True]]
    assert assign(slots, clusters, scores).tolist() == [0, 1]


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="needs CIFAR-10")
def test_photographs_come_back_without_any_key(rng):
    config = Config.from_run_config({"data.dataset": f"hf:{CIFAR10}"})
    dataset = load_dataset(config.data)
    rows = torch.from_numpy(rng.permutation(len(dataset.test))[:20])
    split = PrivateSplit(
        dataset.test.images[rows],
        dataset.test.targets[rows],
        10,
        dataset.train.statistics,
    )
    pool = MixingPool.photos()
    view, truth = observe(split, pool, 50, rng, **{"num-mixed": 6})
    attacker = Carlini(proxy=f"hf:{CIFAR10}", steps=40, images=20, rounds=4)
    found = attacker.reconstruct(view, np.random.default_rng(0), lambda *_: None)
    scores = score(found, {(1, "0"): truth}, split.statistics, 10, rng)
    assert scores.private.attack.ssim.mean > 0.6
