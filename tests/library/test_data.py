from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from instahide_fl.config import Config, PartitionConfig
from instahide_fl.data.federated import load_federated_data
from instahide_fl.data.partition import partition_images
from instahide_fl.data.photos import cut_patches, load_photos
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import ConfigError, PoolError
from instahide_fl.types import ChannelStatistics


def test_images_go_to_the_device_as_far_as_they_fit():
    data = load_federated_data(Config())
    assert data.pool is not None
    images, pool = data.dataset.train.images.nbytes, data.pool.images.nbytes
    for room, places in (
        (images - 1, ("cpu", "cpu")),
        (images, ("meta", "cpu")),
        (images + pool, ("meta", "meta")),
    ):
        moved = data.on("meta", room)
        assert moved.pool is not None
        devices = moved.dataset.train.images.device, moved.pool.images.device
        assert tuple(device.type for device in devices) == places
        assert len(moved.split(3)) == len(data.split(3))
    alone = data.split(3).on("meta")  # only the client's own images travel
    assert len(alone.images) == len(alone) == len(data.split(3))


def test_statistics_match_torch_and_normalise_undoes_restore(split):
    scaled = split.images.double() / 255
    measured = ChannelStatistics.of(split.images, chunk=7)
    assert measured.mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist())
    assert measured.std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())
    normalised = measured.normalise(split.images)
    torch.testing.assert_close(measured.restore(normalised), scaled.float())


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_partitions_are_disjoint_complete_and_seeded(scheme, rng):
    targets = torch.from_numpy(rng.integers(0, 10, 600))
    config = PartitionConfig(scheme=scheme, num_clients=7, alpha=0.3, min_size=5)
    parts = partition_images(targets, config, seed=1)
    assert sorted(torch.cat(parts).tolist()) == list(range(600))
    assert len(parts) == 7
    assert min(map(len, parts)) >= 5
    again = partition_images(targets, config, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    other = partition_images(targets, config, seed=2)
    assert not all(torch.equal(a, b) for a, b in zip(parts, other, strict=True))


def test_dirichlet_is_more_uneven_than_iid(rng):
    targets = torch.from_numpy(rng.integers(0, 10, 2000))

    def largest_class_share(scheme):
        config = PartitionConfig(scheme=scheme, num_clients=5, alpha=0.1)
        parts = partition_images(targets, config, seed=0)
        return np.mean([targets[p].bincount().max() / len(p) for p in parts])

    assert largest_class_share("dirichlet") > 2 * largest_class_share("iid")


def test_impossible_partitions_are_refused():
    targets = torch.zeros(30, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"must be in 1..30 .* got 31"):
        partition_images(targets, PartitionConfig(num_clients=31), 0)
    crowded = PartitionConfig(scheme="dirichlet", num_clients=10, min_size=20)
    with pytest.raises(ConfigError, match=r"partition\.min-size"):
        partition_images(targets, crowded, 0)


def test_clients_must_fill_an_encoding():
    config = Config().with_values({"partition.num-clients": 4000})
    with pytest.raises(ConfigError, match="a client has only 1"):
        load_federated_data(config)


def test_a_pool_is_written_whole_and_opened_by_memory_map(tmp_path, pool):
    saved = pool.save(tmp_path / "pool")
    assert torch.equal(saved.images, pool.images)
    assert saved.sha256 == pool.sha256
    assert saved.statistics == pool.statistics
    saved.verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pool"]
    assert MixingPool.from_images(pool.images[1:]).sha256 != pool.sha256


def test_damaged_and_missing_pools_are_named(tmp_path, pool):
    with pytest.raises(PoolError, match="no pool at"):
        MixingPool.open(tmp_path / "none")
    folder = tmp_path / "pool"
    pool.save(folder)
    data = bytearray((folder / "images.npy").read_bytes())
    data[-1] ^= 1
    (folder / "images.npy").write_bytes(data)
    with pytest.raises(PoolError, match="copy or build it again"):
        MixingPool.open(folder).verify()
    (folder / "images.npy").write_bytes(data[:-100])
    with pytest.raises(PoolError, match="damaged"):
        MixingPool.open(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PoolError, match=r"lacks \['sha256'\]"):
        MixingPool.open(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(PoolError, match=r"manifest .* is damaged"):
        MixingPool.open(folder)


def test_a_pool_must_fit_the_images(pool):
    pool.check_fits((3, 8, 8), 30)
    with pytest.raises(PoolError, match="3x8x8"):
        pool.check_fits((1, 8, 8), 2)
    with pytest.raises(PoolError, match="31 distinct"):
        pool.check_fits((3, 8, 8), 31)


def test_photo_patches_have_detail_and_the_asked_shape():
    patches = cut_patches(load_photos()[:2], 16, 1, count=50)
    assert patches.shape == (50, 1, 16, 16)
    assert patches.dtype == np.uint8
    assert patches.std(axis=(1, 2, 3)).min() > 2
    again = cut_patches(load_photos()[:2], 16, 1, count=50)
    np.testing.assert_array_equal(patches, again)
    with pytest.raises(PoolError, match="at most 64"):
        MixingPool.photos(96, 3)
