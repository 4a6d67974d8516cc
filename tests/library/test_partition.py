from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instahide_fl.config import Config, PartitionConfig
from instahide_fl.data import partition as partition_module
from instahide_fl.data.datasets import ImageDataset
from instahide_fl.data.federated_data import load_federated_data
from instahide_fl.data.partition import (
    cached_partition,
    count_labels,
    partition_images,
    partition_to_json,
)
from instahide_fl.data.partition_schemes import SCHEMES
from instahide_fl.errors import ConfigError
from instahide_fl.pictures.partition import save_partition_picture
from instahide_fl.rng import stream
from instahide_fl.types import PrivateSplit

EVERY = list(PartitionConfig.model_fields["scheme"].annotation.__args__)


def some_targets(images=600, classes=10):
    return torch.from_numpy(stream(0, "targets").integers(0, classes, images))


def divide(scheme, targets=None, seed=0, client_ids=None, **values):
    config = PartitionConfig(scheme=scheme, **{"min_size": 1, **values})
    given = some_targets() if targets is None else targets
    return partition_images(given, config, seed, client_ids)


def test_every_scheme_of_the_settings_exists():
    assert list(SCHEMES) == EVERY


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("iid", "0dc6eb423ef7ecea"), ("dirichlet", "1288c5ab20cab2d6")],
)
def test_a_seed_gives_the_same_partition_as_ever(scheme, expected):
    parts = divide(scheme, seed=1, num_clients=7, alpha=0.3, min_size=5)
    rows = repr([part.tolist() for part in parts])
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == expected


@pytest.mark.parametrize("scheme", EVERY)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    images=st.integers(40, 300),
    classes=st.integers(1, 12),
    clients=st.integers(1, 20),
    per_client=st.integers(1, 6),
    alpha=st.sampled_from([0.05, 0.5, 100.0]),
    seed=st.integers(0, 2**40),
)
def test_partitions_are_disjoint_complete_and_seeded(
    scheme, images, classes, clients, per_client, alpha, seed
):
    # Classes that do not count from 0 without gaps, as after data.train-rows.
    targets = 3 * some_targets(images, classes) + 1
    config = PartitionConfig(
        scheme=scheme,
        num_clients=clients,
        alpha=alpha,
        shards_per_client=per_client,
        classes_per_client=per_client,
        min_size=1,
    )
    ids = torch.arange(images) % clients
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            parts = partition_images(targets, config, seed, ids)
        except ConfigError:
            return  # what each scheme refuses is tested below
    assert len(parts) == clients
    assert sorted(torch.cat(parts).tolist()) == list(range(images))
    assert min(map(len, parts)) >= 1
    assert all(part.dtype == torch.int64 for part in parts)
    again = partition_images(targets, config, seed, ids)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("scheme", [name for name in EVERY if name != "natural-id"])
def test_another_seed_gives_another_partition_of_the_same_kind(scheme):
    first, second = (divide(scheme, seed=seed, num_clients=5) for seed in (0, 1))
    assert any(set(a.tolist()) != set(b.tolist()) for a, b in zip(first, second))  # noqa: B905


def test_dirichlet_is_more_uneven_than_iid_and_inner_dirichlet_has_equal_sizes():
    targets = some_targets(2003)

    def parts(scheme):
        return divide(scheme, targets, num_clients=5, alpha=0.1)

    def largest_class_share(scheme):
        return np.mean([targets[p].bincount().max() / len(p) for p in parts(scheme)])

    for scheme in ("dirichlet", "inner-dirichlet"):
        assert largest_class_share(scheme) > 2 * largest_class_share("iid")
    assert sorted(map(len, parts("inner-dirichlet"))) == [400, 400, 401, 401, 401]
    assert len(set(map(len, parts("dirichlet")))) == 5


@pytest.mark.parametrize("clients", [7, 30])
@pytest.mark.parametrize("each", [1, 2, 3])
def test_shards_are_contiguous_in_the_order_of_classes(clients, each):
    targets = some_targets()
    parts = divide("shards", targets, num_clients=clients, shards_per_client=each)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= each
    assert min(sizes) >= each * (600 // (clients * each))
    # A shard shorter than every class has at most two of them.
    if 600 / (clients * each) < targets.bincount().min():
        assert (count_labels(parts, targets, 10) > 0).sum(1).max() <= 2 * each


@pytest.mark.parametrize(
    ("clients", "each"), [(5, 2), (6, 2), (4, 7), (10, 1), (10, 2), (30, 3), (3, 10)]
)
def test_clients_hold_their_number_of_classes_and_every_class_is_held(clients, each):
    targets = some_targets()
    for seed in range(5):
        parts = divide(
            *("classes", targets, seed),
            num_clients=clients,
            classes_per_client=each,
        )
        held = count_labels(parts, targets, 10) > 0
        assert held.sum(1).tolist() == [each] * clients
        assert held.any(0).all()


def test_quantity_skew_grows_with_the_client():
    targets = some_targets(2000)
    sizes = {
        scheme: [len(p) for p in divide(scheme, targets, num_clients=5)]
        for scheme in ("linear", "square", "exponential")
    }
    assert sizes["linear"] == [133, 266, 400, 533, 668]
    assert sizes["square"] == [36, 145, 327, 581, 911]
    assert sizes["exponential"] == [23, 63, 172, 468, 1274]


def test_natural_clients_hold_their_own_images_in_the_order_of_ids(capfd):
    ids = torch.from_numpy(stream(0, "ids").permutation([2, 5, 5, 9, 9, 9] * 20))
    targets = some_targets(120)
    parts = divide("natural-id", targets, client_ids=ids, num_clients=3)
    assert [ids[part].unique().tolist() for part in parts] == [[2], [5], [9]]
    assert [len(part) for part in parts] == [20, 40, 60]
    assert capfd.readouterr().err == ""
    config = PartitionConfig(scheme="natural-id", num_clients=3)
    described = json.loads(partition_to_json(parts, config, 0, ids))
    assert described["natural_ids"] == [2, 5, 9]
    assert described["clients"] == [part.tolist() for part in parts]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_clients": 601}, r"num-clients must be in 1\.\.600 .* got 601"),
        ({"num_clients": 0}, r"num-clients must be in 1\.\.600 .* got 0"),
        (
            {"scheme": "shards", "min_size": 61},
            r"each of 10 clients 61 images .* only 600",
        ),
        ({"scheme": "dirichlet", "min_size": 60}, r"partition\.min-size\).*alpha"),
        ({"scheme": "inner-dirichlet", "alpha": 1e-3}, r"alpha = 0.001 is too small"),
        ({"scheme": "shards", "shards_per_client": 61}, r"at most 60 .* got 61"),
        ({"scheme": "classes", "classes_per_client": 11}, r"at most 10, .* got 11"),
        (
            {"scheme": "classes", "classes_per_client": 1, "num_clients": 9},
            r"classes-per-client must be at least 2, .* 9 clients .* got 1",
        ),
        (
            {"scheme": "classes", "classes_per_client": 10, "num_clients": 80},
            r"needs an image of a class for every client that holds it",
        ),
        ({"scheme": "linear", "min_size": 11}, r"one of 10 clients 10 images, .* 11"),
        ({"scheme": "exponential"}, r"no images, .*: lower partition\.num-clients"),
        ({"scheme": "exponential", "num_clients": 600}, r"no images, fewer"),
        ({"scheme": "natural-id"}, r"data\.client-column names 7 .*num-clients = 7"),
        (
            {"scheme": "natural-id", "num_clients": 7, "min_size": 99},
            r"85 images, .* = 99: lower partition\.min-size$",
        ),
    ],
)
def test_impossible_partitions_are_refused(values, expected):
    arguments = {"scheme": "iid", "num_clients": 10, **values}
    with pytest.raises(ConfigError, match=expected):
        divide(**arguments, client_ids=torch.arange(600) % 7)


def test_natural_clients_need_a_column():
    with pytest.raises(ConfigError, match=r"name its column in data\.client-column"):
        divide("natural-id", num_clients=10)


def test_the_cache_keeps_partitions_and_tells_natural_clients_apart(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("INSTAHIDE_FL_CACHE", str(tmp_path))
    targets = some_targets(60)
    images = torch.zeros(60, 1, 4, 4, dtype=torch.uint8)
    split = PrivateSplit(images, targets, 10)
    names = tuple("0123456789")
    halves = torch.arange(60) // 30
    dataset = ImageDataset("some", split, split, names, "digest", halves)
    config = PartitionConfig(scheme="natural-id", num_clients=2)
    first = cached_partition(dataset, config, 0)
    assert [sorted(part.tolist()) for part in first] == [
        list(range(30)),
        list(range(30, 60)),
    ]
    other = cached_partition(replace(dataset, client_ids=1 - halves), config, 0)
    assert sorted(other[0].tolist()) == list(range(30, 60))
    monkeypatch.setattr(partition_module, "partition_images", None)
    again = cached_partition(dataset, config, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_clients_must_fill_an_encoding():
    crowded = {"partition.num-clients": 4000}
    config = Config().with_values(crowded)
    with pytest.raises(ConfigError, match="a client has only 1"):
        load_federated_data(config)


@pytest.mark.parametrize(
    ("clients", "classes"), [(1, 1), (10, 10), (30, 20), (31, 10), (3, 21), (101, 250)]
)
def test_pictures_of_all_sizes_are_drawn_alike_each_time(tmp_path, clients, classes):
    targets = some_targets(1000, classes)
    parts = divide("iid", targets, num_clients=clients)
    names = [f"_$class {number} with a long, long name" for number in range(classes)]
    for name in ("a.png", "b.png"):
        save_partition_picture(tmp_path / name, parts, targets, names)
    drawn = (tmp_path / "a.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert drawn == (tmp_path / "b.png").read_bytes()
