from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from instahide_fl.config import Config
from instahide_fl.data.federated_data import load_federated_data
from instahide_fl.data.photos_pool import cut_patches, load_photos
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import PoolError
from instahide_fl.types import ChannelStatistics


def test_images_go_to_the_device_as_far_as_they_fit():
    data = load_federated_data(Config())
    assert data.pool is not None
    images, pool = data.dataset.train.images.nbytes, data.pool.images.nbytes
    for max_bytes, devices in (
        (images - 1, ("cpu", "cpu")),
        (images, ("meta", "cpu")),
        (images + pool, ("meta", "meta")),
    ):
        moved = data.to("meta", max_bytes)
        assert moved.pool is not None
        assert moved.dataset.train.images.device.type == devices[0]
        assert moved.pool.images.device.type == devices[1]
        assert len(moved.split(3)) == len(data.split(3))
    alone = data.split(3).to("meta")  # only the client's own images travel
    assert len(alone.images) == len(alone) == len(data.split(3))


def test_statistics_match_torch_and_normalise_undoes_restore(split):
    scaled = split.images.double() / 255
    measured = ChannelStatistics.of(split.images, chunk=7)
    assert measured.mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist())
    assert measured.std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())
    normalised = measured.normalise(split.images)
    torch.testing.assert_close(measured.restore(normalised), scaled.float())


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
