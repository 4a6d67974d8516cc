"""Shares of the training set that no client receives."""

from __future__ import annotations

import json

import pytest
import torch

from instahide_fl.config import Config, DataConfig, PartitionConfig
from instahide_fl.data import partition as partition_module
from instahide_fl.data.datasets import load_dataset
from instahide_fl.data.federated_data import load_federated_data
from instahide_fl.data.held_out import draw_held_out
from instahide_fl.data.partition import cached_partition, partition_to_json
from instahide_fl.data.partition_schemes import SCHEMES
from instahide_fl.encoding.files import encode_dataset
from instahide_fl.errors import DataError

NAMES = ("cat", "dog", "owl")


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """Partitions that earlier tests stored would hide how they are drawn now."""
    monkeypatch.setattr(
        partition_module, "cache_folder", lambda *parts: tmp_path / parts[-1]
    )


def draw(targets, share, seed=0):
    return draw_held_out(targets, DataConfig(validation_share=share), seed, NAMES)


def some_targets(*counts):
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def test_every_class_gives_its_share_and_the_seed_says_which_images():
    targets = some_targets(40, 10, 25)[torch.randperm(75)]
    held_out = draw(targets, 0.2)
    rows = held_out.rows["validation"]
    assert targets[rows].bincount().tolist() == [8, 2, 5]
    assert rows.tolist() == sorted(set(rows.tolist()))
    everything = torch.cat([rows, held_out.remaining(75)])
    assert sorted(everything.tolist()) == list(range(75))
    assert draw(targets, 0.2).to_json() == held_out.to_json()
    assert draw(targets, 0.2, seed=1).to_json() != held_out.to_json()
    assert not draw(targets, 0.0)


@pytest.mark.parametrize(
    ("counts", "share", "reason"),
    [
        ((40, 4, 30), 0.1, r"none of the 4 .* class 'dog': from 0.125 to below 0.875"),
        (
            (40, 4, 30),
            0.9,
            r"leaves none of the 4 .* class 'dog': from 0.125 to",
        ),
        ((40, 1, 30), 0.5, r"class 'dog': no share does both"),
    ],
)
def test_a_share_that_leaves_a_class_empty_names_the_class_and_what_would_do(
    counts, share, reason
):
    with pytest.raises(DataError, match=rf"data.validation-share = {share} .*{reason}"):
        draw(some_targets(*counts), share)


def test_the_suggested_shares_do():
    targets = some_targets(40, 4, 30)
    for share in (0.125, 0.874):
        assert set(targets[draw(targets, share).rows["validation"]].tolist()) == {
            *(0, 1, 2)
        }
    assert draw(some_targets(40, 0, 30), 0.1)  # a class that only the test part has


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "natural-id"])
def test_no_scheme_gives_a_client_a_held_out_image(scheme, no_cache):
    data = DataConfig(train_rows="100:700", validation_share=0.25)
    loaded = load_dataset(data, 0)
    config = PartitionConfig(
        scheme=scheme, num_clients=4, min_size=1, classes_per_client=3
    )
    parts = cached_partition(loaded, config, 0)
    text = partition_to_json(parts, config, 0, held_out=loaded.held_out)
    described = json.loads(text)
    validation = described["held_out"]["validation"]
    rows = [row for client in described["clients"] for row in client]
    assert sorted([*rows, *validation]) == list(range(600))
    assert loaded.train.targets[validation].bincount().min() > 0


def test_owners_keep_their_images_but_for_those_held_out(no_cache):
    loaded = load_dataset(DataConfig(train_rows="0:400", validation_share=0.25), 0)
    owners = torch.arange(400) % 4
    object.__setattr__(loaded, "client_ids", owners)
    config = PartitionConfig(scheme="natural-id", num_clients=4, min_size=1)
    parts = cached_partition(loaded, config, 0)
    assert [set(owners[part].tolist()) for part in parts] == [{0}, {1}, {2}, {3}]
    assert not set(torch.cat(parts).tolist()) & set(
        loaded.held_out.to_json()["validation"]
    )


def test_a_share_changes_the_digest_and_neither_statistics_nor_row_numbers():
    whole = load_dataset(DataConfig(), 0)
    loaded = load_dataset(DataConfig(validation_share=0.1), 0)
    other = load_dataset(DataConfig(validation_share=0.1), 1)
    assert len({whole.digest, loaded.digest, other.digest}) == 3
    assert loaded.train.statistics == whole.train.statistics
    assert loaded.validation.statistics == whole.train.statistics
    assert torch.equal(loaded.train.images, whole.train.images)
    assert whole.validation is None
    assert whole.client_images is whole.train
    assert len(loaded.client_images) + len(loaded.validation) == len(whole.train)


def test_shares_are_disjoint_and_a_later_one_leaves_an_earlier_one_alone():
    targets = some_targets(40, 10, 25)
    validation = DataConfig(validation_share=0.3)
    both = draw_held_out(targets, validation, 0, NAMES, holdout_share=0.2)
    alone = draw_held_out(targets, DataConfig(), 0, NAMES, holdout_share=0.2)
    assert list(both.rows) == ["membership", "validation"]
    assert torch.equal(both.rows["membership"], alone.rows["membership"])
    assert targets[both.rows["membership"]].bincount().tolist() == [8, 2, 5]
    assert targets[both.rows["validation"]].bincount().tolist() == [12, 3, 8]
    rows = torch.cat([*both.rows.values(), both.remaining(75)])
    assert sorted(rows.tolist()) == list(range(75))
    with pytest.raises(DataError, match=r"validation-share = 0.3 leaves none of the 2"):
        draw_held_out(some_targets(40, 2, 30), validation, 0, NAMES, holdout_share=0.6)


def test_the_held_out_are_the_same_for_all_methods_of_a_seed():
    held_out = {"record.rounds": "1", "record.truth": True, "record.holdout-share": 0.1}
    plain = Config().with_values({**held_out, "instahide.method": "none"})
    instahide = Config().with_values({**held_out, "data.validation-share": 0.2})
    rows = [
        load_federated_data(config).dataset.held_out.rows["membership"]
        for config in (plain, instahide, plain.with_values({"seed": 1}))
    ]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    parts = load_federated_data(plain).partition
    assert not set(torch.cat(parts).tolist()) & set(rows[0].tolist())


def test_only_what_clients_may_hold_is_encoded():
    config = Config().with_values(
        {"data.train-rows": "0:200", "data.validation-share": 0.25}
    )
    assert len(encode_dataset(config, seeded=True).batch) == len(
        load_federated_data(config.with_values({"partition.num-clients": 1})).partition[
            0
        ]
    )
