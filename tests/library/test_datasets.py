from __future__ import annotations

import gzip
import os
import pickle
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from instahide_fl import cli
from instahide_fl.config import DataConfig
from instahide_fl.data.datasets import augmentation_for, load_dataset
from instahide_fl.errors import ConfigError, DataError, OutputError
from instahide_fl.files import atomic_folder
from instahide_fl.pictures.contact_sheet import class_rows, save_contact_sheet
from instahide_fl.types import PrivateSplit
from tests.library.pictures import write_pictures
from tests.real_data import CIFAR10

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PAGE = Path(__file__).parents[2] / "docs" / "data.md"
IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def write_idx_files(folder, packed, count=12):
    """Four files in the format of MNIST; returns the training images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for name in IDX:
        values = images if "images" in name else labels
        sizes = np.array(values.shape, dtype=">u4").tobytes()
        content = bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()
        if packed:
            (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{name}-ubyte").write_bytes(content)
    return torch.from_numpy(images[:, None])


def test_noise_is_the_same_everywhere_and_its_name_is_checked(own_cache):
    config = DataConfig(dataset="noise:20x3x8x8")
    first = load_dataset(config)
    assert first.train.images.shape == (20, 3, 8, 8)
    shutil.rmtree(own_cache)
    assert load_dataset(config).digest == first.digest
    for wrong in ("noise:", "noise:20x2x8x8", "noise:0x3x8x8"):
        with pytest.raises(DataError, match="noise is written noise:NxCxHxW"):
            load_dataset(DataConfig(dataset=wrong))


def test_sizes_that_no_disk_holds_are_refused():
    with pytest.raises(DataError, match=r"noise has at most .* got 19,199,999,999,808"):
        load_dataset(DataConfig(dataset="noise:99999999999x3x8x8"))
    with pytest.raises(ConfigError, match=r"image-size must be .* 4096, got 99999999"):
        DataConfig(image_size=99_999_999)


def test_what_a_killed_decoding_left_is_removed(own_cache):
    cache = own_cache / "datasets"
    abandoned = cache / ".noise-20x3x8x8-0123456789abcdef.x1y2z3w4"
    abandoned.mkdir(parents=True)
    (abandoned / "train-images.npy").write_bytes(bytes(100))
    long_ago = time.time() - 3600
    with atomic_folder(cache / "other") as written, atomic_folder(cache / "new") as new:
        for folder in (abandoned, written):
            os.utime(folder, (long_ago, long_ago))
        load_dataset(DataConfig(dataset="noise:20x3x8x8"))
        assert not abandoned.exists()
        assert written.is_dir()  # its writer lives
        assert new.is_dir()


@pytest.mark.parametrize(
    ("dataset", "setting", "rule"),
    [
        ("imagefolder:x", "config", "only hf: data sets have configurations"),
        ("webdataset:x.tar", "config", "only hf: data sets have configurations"),
        ("mnist-5k", "config", "only hf: data sets have configurations"),
        ("mnist-5k", "train_part", "imagefolder: data sets have named parts"),
        ("noise:20x3x8x8", "test_part", "imagefolder: data sets have named parts"),
        ("cifar10", "image_column", "imagefolder: data sets have columns"),
        ("mnist", "label_column", "imagefolder: data sets have columns"),
    ],
)
def test_settings_that_a_kind_of_data_set_does_not_use_are_refused(
    dataset, setting, rule
):
    name = setting.replace("_", "-")
    with pytest.raises(DataError, match=f"^data.{name}: .*{rule}, got 'value' for "):
        load_dataset(DataConfig(dataset=dataset, **{setting: "value"}))


def test_mnist_5k_is_divided_by_the_seed():
    first, again = load_dataset(DataConfig(), 0), load_dataset(DataConfig(), 0)
    other = load_dataset(DataConfig(), 1)
    assert first.train.images.shape == (4000, 1, 28, 28)
    assert first.test.images.shape == (1000, 1, 28, 28)
    assert torch.equal(first.train.targets, again.train.targets)
    assert not torch.equal(first.train.targets, other.train.targets)
    together = torch.cat([first.train.targets, first.test.targets])
    assert together.bincount().tolist() == [500] * 10
    assert augmentation_for(DataConfig(), first.image_shape) is None


def test_a_data_set_of_an_unknown_name_is_refused():
    with pytest.raises(DataError, match="must be mnist-5k, hf:"):
        load_dataset(DataConfig(dataset="minst"))


@pytest.mark.long
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="no CIFAR-10 on this machine")
def test_cifar10_from_disk():
    loaded = load_dataset(DataConfig(dataset=f"hf:{CIFAR10}"))
    assert loaded.train.images.shape == (50_000, 3, 32, 32)
    assert loaded.test.targets.bincount().tolist() == [1000] * 10
    assert loaded.train.statistics.mean == pytest.approx(
        (0.491, 0.482, 0.447), abs=2e-3
    )


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INSTAHIDE_FL_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set INSTAHIDE_FL_CACHE to another"):
        load_dataset(DataConfig())


@pytest.mark.parametrize(
    ("place", "packed"),
    [("MNIST/raw", False), ("MNIST/raw", True), (".", False), (".", True)],
)
def test_mnist_is_read_from_every_layout_and_nothing_is_written(
    tmp_path, own_cache, place, packed
):
    images = write_idx_files(tmp_path / "root" / place, packed)
    for folder in (tmp_path / "root").rglob("*"):
        if folder.is_dir():
            folder.chmod(0o555)
    before = sorted(tmp_path.joinpath("root").rglob("*"))
    config = DataConfig(dataset="mnist", root=str(tmp_path / "root"))
    loaded = load_dataset(config)
    assert torch.equal(loaded.train.images, images)
    assert loaded.test.targets.tolist() == [*range(10), 0, 1]
    assert len(loaded.class_names) == 10
    assert sorted(tmp_path.joinpath("root").rglob("*")) == before


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="no package dataset-fashion-mnist")
def test_fashion_mnist_as_debian_packs_it(own_cache):
    loaded = load_dataset(DataConfig(dataset="fashion-mnist", root=str(DEBIAN)))
    assert loaded.train.images.shape == (60_000, 1, 28, 28)
    assert loaded.test.targets.bincount().tolist() == [1000] * 10
    assert loaded.train.statistics.mean == pytest.approx((0.286,), abs=1e-3)


def test_cifar100_in_torchvisions_layout(tmp_path, own_cache, monkeypatch):
    import torchvision  # takes seconds: only where it is needed

    kind = torchvision.datasets.CIFAR100
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), np.uint8)
    batch = {"data": pixels.reshape(6, -1), "fine_labels": [5, 4, 3, 2, 1, 0]}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(batch))
    names = [f"class {number}" for number in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    config = DataConfig(dataset="cifar100", root=str(tmp_path))
    with pytest.raises(DataError, match="are damaged"):  # not the published files
        load_dataset(config)
    monkeypatch.setattr(kind, "train_list", [["train", None]])
    monkeypatch.setattr(kind, "test_list", [["test", None]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    loaded = load_dataset(config)
    assert torch.equal(loaded.train.images, torch.from_numpy(pixels))
    assert loaded.train.targets.tolist() == [5, 4, 3, 2, 1, 0]
    assert loaded.class_names == tuple(names)


def test_missing_and_damaged_files_of_torchvision(tmp_path, own_cache, monkeypatch):
    import torchvision

    config = DataConfig(dataset="mnist", root=str(tmp_path))
    remedies = rf"no files of mnist in {re.escape(str(tmp_path))}.*data\.root.*download"
    with pytest.raises(DataError, match=remedies):
        load_dataset(config)
    with pytest.raises(DataError, match=f"{re.escape(str(own_cache))}/torchvision"):
        load_dataset(DataConfig(dataset="cifar10"))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://localhost:9/"])
    with pytest.raises(DataError, match=r"downloading them failed.*data\.root"):
        load_dataset(config.model_copy(update={"download": True}))
    shutil.rmtree(tmp_path / "MNIST")
    write_idx_files(tmp_path / "MNIST" / "raw", packed=True)
    file = tmp_path / "MNIST" / "raw" / f"{IDX[0]}-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="are damaged"):
        load_dataset(config)
    assert not list(own_cache.glob("datasets/*"))


def test_training_rows_are_kept_without_a_copy(own_cache):
    name = "noise:40x3x8x8"
    whole = load_dataset(DataConfig(dataset=name))
    kept = load_dataset(DataConfig(dataset=name, train_rows="10:25"))
    assert torch.equal(kept.train.images, whole.train.images[10:25])
    assert torch.equal(kept.train.targets, whole.train.targets[10:25])
    assert kept.train.images.untyped_storage().nbytes() == whole.train.images.nbytes
    assert torch.equal(kept.test.images, whole.test.images)
    assert kept.train.statistics == whole.train.statistics
    other = load_dataset(DataConfig(dataset=name, train_rows="10:26"))
    assert len({whole.digest, kept.digest, other.digest}) == 3
    for wrong in ("10", "a:b", "-5:3", "10:41", "7:7", "9:8"):
        with pytest.raises(DataError, match=r"data\.train-rows .*" + wrong):
            load_dataset(DataConfig(dataset=name, train_rows=wrong))


def test_a_pytorch_data_set_becomes_a_split():
    colour = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    picture = Image.fromarray(colour.permute(1, 2, 0).numpy())
    for image in (colour, picture, colour / 255):
        split = PrivateSplit.from_dataset([(image, 1), (image, torch.tensor(3))])
        assert torch.equal(split.images, torch.stack([colour, colour]))
        assert (split.targets.tolist(), split.num_classes) == ([1, 3], 4)
    for rows, match in (
        ([], "without images"),
        ([(colour / 100, 1)], r"float in \[0, 1\], not normalised"),
        ([("cat.png", 1)], "got str"),
        ([(colour, 1.5)], "whole number, got 1.5"),
        ([(colour, 1), (colour[:, :2], 1)], "one shape"),
    ):
        with pytest.raises(DataError, match=match):
            PrivateSplit.from_dataset(rows)


def test_the_loop_of_the_page_runs_on_torchvisions_files(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) < 15
    write_idx_files(tmp_path / "data" / "FashionMNIST" / "raw", packed=False, count=70)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "data.md", "exec"), names)
    assert names["split"].num_classes == 10
    assert len(names["split"]) == 70
    assert names["batch"].images.shape == (6, 1, 28, 28)
    again = names["encoder"].apply_key(names["key"], names["split"])
    assert torch.equal(again.images, names["batch"].images)


def test_a_contact_sheet_has_a_row_for_each_label(tmp_path):
    loaded = load_dataset(DataConfig(dataset="noise:40x3x8x8"))
    rows = class_rows(loaded, classes=3, images=2)
    assert [label for label, _ in rows] == ["0", "1", "2"]
    odd = [*rows, ("none of $10", rows[0][1][:0])]
    save_contact_sheet(tmp_path / "sheet.png", odd, "some noise")
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = np.asarray(sheet.convert("RGB")).astype(int)
    assert colours.shape[0] > 4 * 80
    assert (np.ptp(colours, axis=2) > 50).mean() > 0.1  # coloured noise is there


def test_data_info_sums_many_classes_up(tmp_path, own_cache, monkeypatch, capsys):
    names = [f"train/class-{i:02}/{j}.png" for i in range(21) for j in range(1 + i % 2)]
    write_pictures(tmp_path, [*names, "test/class-00/1.png"])
    picture = tmp_path / "sheet.png"
    command = ["data", "info", f"imagefolder:{tmp_path}", "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", ["instahide-fl", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "21: class-00, class-01, class-02, ..., class-20" in printed
    assert "1 (class-00) to 2 (class-01), mean 1.5" in printed
    assert picture.stat().st_size > 0
