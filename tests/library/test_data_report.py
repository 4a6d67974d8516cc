"""The report of a data set counts what was read."""

from __future__ import annotations

import json

from PIL import Image

from instahide_fl.config import DataConfig
from instahide_fl.data.data_report import DataReport
from instahide_fl.data.datasets import load_dataset, load_private_images
from tests.library.pictures import write_noise_pictures, write_pictures


def test_a_report_counts_parts_classes_and_copies(data_folder, own_cache):
    write_noise_pictures(data_folder / "train" / "a", 6)
    write_noise_pictures(data_folder / "train" / "b", 5, start=10)
    write_noise_pictures(data_folder / "test" / "a", 4, start=2)  # all in train
    write_noise_pictures(data_folder / "test" / "b", 3, start=5)  # 5 is in train/a
    config = DataConfig(dataset=f"imagefolder:{data_folder}")
    for _ in ("decoded", "from the cache"):
        report = load_dataset(config).report
        assert report is not None
        assert report.parts == {"train": 11, "test": 7}
        assert report.classes == {"a": 10, "b": 8}
        assert (report.channels, report.height, report.width) == (3, 8, 8)
        assert report.levels == 256
        assert (report.duplicates, report.duplicates_across_parts) == (5, 5)
        assert (report.one_colour, report.left_out) == (0, 0)
        across, relabelled = map(str, report.warnings)
        assert "5 of 7 test images are training images too" in across
        assert "1 image equals an image of another class" in relabelled
    kept = load_dataset(config.model_copy(update={"train_rows": "4:11"})).report
    assert kept is not None
    assert kept.parts == {"train": 7, "test": 7}
    assert kept.classes == {"a": 6, "b": 8}
    assert kept.duplicates_across_parts == 3
    assert kept.source.parts_from["train"].endswith("keeps 4:11 of 11")


def test_a_report_of_a_divided_set_and_of_a_deployed_client(
    tmp_path, data_folder, own_cache
):
    write_noise_pictures(data_folder / "a", 6)
    write_noise_pictures(data_folder / "b", 4, start=10)
    config = DataConfig(dataset=f"imagefolder:{data_folder}")
    report = load_dataset(config).report
    assert report is not None
    assert report.parts == {"train": 8, "test": 2}
    assert report.classes == {"a": 6, "b": 4}
    assert report.source.parts_from["test"].endswith("20% drawn by the seed")
    client = load_private_images(config, tmp_path / "client").report
    assert (client.parts, client.classes) == ({"train": 10}, {"a": 6, "b": 4})


def test_a_report_is_read_back_from_json(data_folder, own_cache):
    write_noise_pictures(data_folder / "train" / "a", 6)
    write_noise_pictures(data_folder / "train" / "b", 5)  # 5 copies
    write_noise_pictures(data_folder / "test" / "a", 4, start=20)
    report = load_dataset(DataConfig(dataset=f"imagefolder:{data_folder}")).report
    assert report is not None
    assert report.warnings
    values = json.loads(json.dumps(report.to_json()))
    assert values["left_out"] == 0
    assert isinstance(values["warnings"][0], str)
    assert DataReport.from_json(values) == report


def test_classes_without_a_test_image_are_named(data_folder, own_cache):
    names = [f"train/{kind}/{number}.png" for kind in "abc" for number in "12"]
    write_pictures(data_folder, [*names, "test/b/1.png"])
    (data_folder / "test" / "a").mkdir()
    report = load_dataset(DataConfig(dataset=f"imagefolder:{data_folder}")).report
    assert report is not None
    [warning] = [text for text in map(str, report.warnings) if "no test image" in text]
    assert warning.startswith("2 of 3 classes have training images and no test image: ")
    assert "a, c" in warning


def test_pictures_of_one_colour_are_counted(own_cache, data_folder):
    write_noise_pictures(data_folder / "a", 20)
    write_noise_pictures(data_folder / "b", 18, start=30)
    for shade in (1, 2):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(data_folder / "b" / f"{shade}.png")
    report = load_dataset(DataConfig(dataset=f"imagefolder:{data_folder}")).report
    assert report is not None
    assert report.one_colour == 2
    assert "2 of 40 images are of a single colour" in str(report.warnings[-1])
