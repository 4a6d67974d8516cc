"""Images with equal pixels are counted, and dropped where that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instahide_fl.config import DataConfig
from instahide_fl.data.datasets import load_dataset, load_private_images
from instahide_fl.data.duplicates import (
    find_first_copies,
    hash_images,
    rows_without_copies,
)
from instahide_fl.errors import DataError
from tests.library.pictures import write_noise_pictures, write_parquet


def test_equal_images_have_the_first_of_them_as_first_copy():
    images = np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)[[0, 1, 0, 2, 1, 0]]
    hashes = hash_images(images)
    assert hashes.shape == (6, 2)
    assert find_first_copies(hashes).tolist() == [0, 1, 0, 3, 1, 0]
    rows = rows_without_copies({"test": hashes[:2], "train": hashes[2:]})
    assert {name: part.tolist() for name, part in rows.items()} == {
        "test": [0, 1],
        "train": [1],
    }


def test_training_images_that_equal_test_images_are_dropped(
    tmp_path, data_folder, own_cache
):
    for name in "ab":
        start = 10 * (name == "b")
        write_noise_pictures(data_folder / "train" / name, 6, start)
        write_noise_pictures(data_folder / "test" / name, 3, start + 4)
    config = DataConfig(dataset=f"imagefolder:{data_folder}")
    plain = load_dataset(config)
    config = config.model_copy(update={"drop_duplicates": True})
    for _ in ("dropped", "from the cache"):
        unique = load_dataset(config)
        assert (len(unique.train), len(unique.test)) == (8, 6)
        rows = [0, 1, 2, 3, 6, 7, 8, 9]
        assert torch.equal(unique.train.images, plain.train.images[rows])
        assert torch.equal(unique.train.targets, plain.train.targets[rows])
        report = unique.report
        assert report is not None
        assert (report.duplicates, report.left_out) == (0, 4)
        assert report.source.left_out[0].examples[0] == "train image 4"
    assert unique.digest != plain.digest
    rows = load_dataset(config.model_copy(update={"train_rows": "0:8"}))
    assert torch.equal(rows.train.images, unique.train.images)
    client = load_private_images(config, tmp_path / "client")
    assert torch.equal(client.split.images, unique.train.images)


def test_no_copy_is_on_both_sides_of_the_seeds_division(data_folder, own_cache):
    for copy in range(4):
        for name in "ab":
            write_noise_pictures(
                data_folder / name / f"{name}-{copy}",
                10,
                start=10 * (name == "b"),
            )
    config = DataConfig(dataset=f"imagefolder:{data_folder}")
    report = load_dataset(config).report
    assert report is not None
    assert report.duplicates_across_parts > 0
    report = load_dataset(config.model_copy(update={"drop_duplicates": True})).report
    assert report is not None
    assert report.parts == {"train": 16, "test": 4}
    assert (report.duplicates, report.left_out) == (0, 60)


def test_a_set_without_copies_keeps_its_digest(data_folder, own_cache):
    write_noise_pictures(data_folder / "a", 5)
    write_noise_pictures(data_folder / "b", 5, start=10)
    config = DataConfig(dataset=f"imagefolder:{data_folder}")
    unique = load_dataset(config.model_copy(update={"drop_duplicates": True}))
    assert unique.digest == load_dataset(config).digest


def test_owners_without_an_image_lose_their_number(data_folder, own_cache):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
    train = pixels[[0, 1, 2, 3, 0, 1, 4, 5]]
    path, owners = data_folder / "data", list("aabbccdd")
    labels = [0, 1] * 4
    write_parquet(path / "train-0.parquet", train, labels, "xy", writer=owners)
    write_parquet(path / "test-0.parquet", pixels[6:], [0, 1], "xy", writer=["t", "t"])
    config = DataConfig(
        dataset=f"hf:{data_folder}",
        client_column="writer",
        drop_duplicates=True,
    )
    loaded = load_dataset(config)
    assert loaded.client_ids is not None
    assert loaded.client_ids.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_class_of_copies_alone_is_refused(data_folder, own_cache):
    for part in ("train", "test"):
        write_noise_pictures(data_folder / part / "a", 3)
        write_noise_pictures(
            data_folder / part / "b", 3, start=10 + 10 * (part == "test")
        )
    config = DataConfig(dataset=f"imagefolder:{data_folder}", drop_duplicates=True)
    with pytest.raises(DataError, match=r"1 of 2 classes .* in the part train: a:"):
        load_dataset(config)


def test_dropped_copies_of_another_class_are_told(data_folder, own_cache):
    write_noise_pictures(data_folder / "train" / "a", 3)
    write_noise_pictures(data_folder / "train" / "b", 3, start=2)  # 2 is in both
    write_noise_pictures(data_folder / "test" / "a", 2, start=20)
    config = DataConfig(dataset=f"imagefolder:{data_folder}", drop_duplicates=True)
    report = load_dataset(config).report
    assert report is not None
    assert report.parts == {"train": 5, "test": 2}
    assert "1 of the copies" in str(report.warnings[0])
