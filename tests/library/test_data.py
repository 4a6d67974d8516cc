from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from instahide_fl.config import Config, DataConfig
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import augmentation_for, load_dataset
from instahide_fl.data.federated import load_federated_data
from instahide_fl.data.photos import cut_patches, load_photos
from instahide_fl.data.pool import MixingPool
from instahide_fl.errors import DataError, OutputError, PoolError
from instahide_fl.types import ChannelStatistics

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10"


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INSTAHIDE_FL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path / "cache"


def write_hugging_face_folder(folder, count=12, size=(8, 8), mode="RGB"):
    """A data set in the layout of the hub: parquet files with encoded images."""
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rng = np.random.default_rng(0)
    shape = (*size, 3) if mode == "RGB" else size
    pixels = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    rows = {
        "img": [Image.fromarray(one) for one in pixels],
        "label": [i % 2 for i in range(count)],
    }
    for part in ("train", "test"):
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / "data" / f"{part}-00000-of-00001.parquet")
    return pixels


def test_a_data_set_has_one_digest_wherever_it_lies(tmp_path, own_cache):
    digests = []
    for name in ("here", "there"):
        write_hugging_face_folder(tmp_path / name)
        config = DataConfig(dataset=f"hf:{tmp_path / name}")
        digests.append(load_dataset(config).digest)
    write_hugging_face_folder(tmp_path / "fewer", count=10)
    config = DataConfig(dataset=f"hf:{tmp_path / 'fewer'}")
    assert digests[0] == digests[1] != load_dataset(config).digest


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


def test_noise_is_the_same_everywhere_and_its_name_is_checked(own_cache):
    config = DataConfig(dataset="noise:20x3x8x8")
    first = load_dataset(config)
    assert first.train.images.shape == (20, 3, 8, 8)
    shutil.rmtree(own_cache)
    assert load_dataset(config).digest == first.digest
    for wrong in ("noise:", "noise:20x2x8x8", "noise:0x3x8x8"):
        with pytest.raises(DataError, match="noise is written noise:NxCxHxW"):
            load_dataset(DataConfig(dataset=wrong))


def test_mnist_5k_is_divided_by_the_seed():
    first, again = load_dataset(DataConfig(), 0), load_dataset(DataConfig(), 0)
    other = load_dataset(DataConfig(), 1)
    assert first.train.images.shape == (4000, 1, 28, 28)
    assert first.test.images.shape == (1000, 1, 28, 28)
    assert torch.equal(first.train.targets, again.train.targets)
    assert not torch.equal(first.train.targets, other.train.targets)
    together = torch.cat([first.train.targets, first.test.targets])
    assert together.bincount().tolist() == [500] * 10
    assert augmentation_for(DataConfig(), first) is None


def test_a_hugging_face_folder_is_read_pixel_by_pixel(tmp_path, own_cache):
    pixels = write_hugging_face_folder(tmp_path / "set")
    config = DataConfig(dataset=f"hf:{tmp_path / 'set'}")
    for _ in ("decoded", "from the cache"):
        loaded = load_dataset(config)
        assert torch.equal(
            loaded.train.images, torch.from_numpy(pixels.transpose(0, 3, 1, 2))
        )
        assert loaded.class_names == ("cat", "dog")
        assert loaded.train.targets.tolist() == [0, 1] * 6
    assert augmentation_for(config, loaded) == Augmentation(1, flip=True)
    resized = load_dataset(config.model_copy(update={"image_size": 4}))
    assert resized.image_shape == (3, 4, 4)


def test_data_sets_that_cannot_be_used(tmp_path, own_cache):
    with pytest.raises(DataError, match="must be mnist-5k, hf:"):
        load_dataset(DataConfig(dataset="minst"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot load hf:"):
        load_dataset(DataConfig(dataset=f"hf:{tmp_path / 'empty'}"))
    write_hugging_face_folder(tmp_path / "wide", size=(8, 12))
    with pytest.raises(DataError, match=r"set data\.image-size"):
        load_dataset(DataConfig(dataset=f"hf:{tmp_path / 'wide'}"))
    assert not list(own_cache.glob("datasets/*"))


@pytest.mark.skipif(not CIFAR.is_dir(), reason="no CIFAR-10 beside the checkout")
def test_cifar10_from_disk():
    loaded = load_dataset(DataConfig(dataset=f"hf:{CIFAR}"))
    assert loaded.train.images.shape == (50_000, 3, 32, 32)
    assert loaded.test.targets.bincount().tolist() == [1000] * 10
    assert loaded.train.statistics.mean == pytest.approx(
        (0.491, 0.482, 0.447), abs=2e-3
    )


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


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INSTAHIDE_FL_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot write"):
        load_dataset(DataConfig())


def test_photo_patches_have_detail_and_the_asked_shape():
    patches = cut_patches(load_photos()[:2], 16, 1, count=50)
    assert patches.shape == (50, 1, 16, 16)
    assert patches.dtype == np.uint8
    assert patches.std(axis=(1, 2, 3)).min() > 2
    again = cut_patches(load_photos()[:2], 16, 1, count=50)
    np.testing.assert_array_equal(patches, again)
    with pytest.raises(PoolError, match="at most 64"):
        MixingPool.photos(96, 3)
