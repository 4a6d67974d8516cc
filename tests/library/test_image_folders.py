from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from instahide_fl.config import DataConfig
from instahide_fl.data.datasets import load_dataset
from instahide_fl.data.sources.base import BLOCK_IMAGES
from instahide_fl.errors import DataError
from instahide_fl.types import ChannelStatistics
from tests.library.pictures import write_pictures
from tests.real_data import IMAGENET


def test_a_folder_per_class_is_divided_by_the_seed(tmp_path, own_cache):
    names = [
        f"{kind}/deep/{i:03}.png" for kind in ("b", "a") for i in range(BLOCK_IMAGES)
    ]
    write_pictures(tmp_path / "set", names, "L")
    config = DataConfig(dataset=f"imagefolder:{tmp_path / 'set'}")
    loaded = load_dataset(config)
    assert loaded.class_names == ("a", "b")
    assert (len(loaded.train), len(loaded.test)) == (205, 51)
    assert loaded.image_shape == (1, 8, 8)
    for part in (loaded.train, loaded.test):  # each image kept its class
        shades = part.images[:, 0, 0, 0].int()
        assert torch.equal(part.targets, (shades < BLOCK_IMAGES).long())
    together = torch.cat([loaded.train.images, loaded.test.images])
    assert sorted(together[:, 0, 0, 0].tolist()) == list(range(2 * BLOCK_IMAGES))
    assert load_dataset(config, 1).digest != loaded.digest
    assert loaded.train.statistics == ChannelStatistics.of(loaded.train.images)


def test_train_and_test_folders_may_have_one_image_a_class(tmp_path, own_cache):
    names = ["train/a/1.png", "train/b/2.JPG", "val/b/3.png", "val/.hidden/4.png"]
    write_pictures(tmp_path, names)
    config = DataConfig(dataset=f"imagefolder:{tmp_path}")
    loaded = load_dataset(config)
    assert loaded.train.targets.tolist() == [0, 1]
    assert loaded.test.targets.tolist() == [1]
    write_pictures(tmp_path, ["val/c/5.png"])
    with pytest.raises(DataError, match=r"classes that train/ has not: c"):
        load_dataset(config)


def test_pictures_of_all_modes_become_colour(tmp_path, own_cache):
    folder = tmp_path / "train" / "a"
    write_pictures(folder, ["0-grey.png"], "L")
    clear = Image.new("RGBA", (8, 8), (204, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 8, 4))
    clear.save(folder / "1-transparent.png")
    clear.convert("RGB").convert("P").save(folder / "2-palette.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "3-cmyk.jpg", quality=95)
    wide = np.full((8, 8), 0x80FF, np.uint16)
    Image.fromarray(wide).save(folder / "4-sixteen-bits.png")
    turned = Image.new("RGB", (8, 8))
    turned.paste((255, 255, 255), (0, 0, 8, 4))  # upper half white
    exif = Image.Exif()
    exif[0x0112] = 3  # to be turned by 180 degrees
    turned.save(folder / "5-turned.png", exif=exif)
    write_pictures(tmp_path, ["train/b/1.png", "test/a/1.png"])
    config = DataConfig(dataset=f"imagefolder:{tmp_path}", value_range="0:65535")
    loaded = load_dataset(config)
    corners = loaded.train.images[:6, :, (0, 7), 0].transpose(1, 2).tolist()
    assert corners[0] == [[0, 0, 0]] * 2
    assert corners[1] == [[0, 0, 255], [255, 255, 255]]
    assert corners[2] == [[0, 0, 255], [204, 0, 0]]
    assert np.allclose(corners[3], [255, 0, 0], atol=4)
    assert corners[4] == [[0x80] * 3] * 2
    assert corners[5] == [[0, 0, 0], [255, 255, 255]]


def test_image_folders_that_cannot_be_used(tmp_path, own_cache):
    def refused(name, match):
        with pytest.raises(DataError, match=match):
            load_dataset(DataConfig(dataset=f"imagefolder:{tmp_path / name}"))

    refused("missing", "is no folder")
    (tmp_path / "empty").mkdir()
    refused("empty", "at least two classes .* there is none")
    write_pictures(tmp_path / "one", ["a/1.png", "a/2.png"])
    refused("one", "there is only a")
    write_pictures(tmp_path / "loose", ["a/1.png", "b/2.png", "3.png"])
    refused("loose", r"1 images in .* have no label.*3\.png")
    write_pictures(tmp_path / "single", ["a/1.png", "a/2.png", "b/3.png"])
    refused("single", "1 of its 2 classes have one image only.*: b")
    write_pictures(tmp_path / "void", ["a/1.png", "b/2.png"])
    (tmp_path / "void" / "c").mkdir()
    refused("void", "for 1 of 3 classes: c")
    names = [f"{kind}/{i}.png" for kind in "ab" for i in range(4)]
    write_pictures(tmp_path / "torn", names)
    for name in ("a/0.png", "b/1.png"):
        file = tmp_path / "torn" / name
        file.write_bytes(file.read_bytes()[:40])
    refused("torn", r"2 of 8 images .* cannot be read: a/0\.png, b/1\.png \(")
    write_pictures(tmp_path / "mixed", names)
    write_pictures(tmp_path / "mixed", ["b/9.png"], size=(8, 9))
    refused("mixed", r"\(8x9\): set data\.image-size")
    assert not list(own_cache.glob("datasets/*"))


@pytest.mark.skipif(not IMAGENET.is_dir(), reason="no ImageNet on this machine")
def test_one_image_a_class_cannot_be_divided(own_cache):
    config = DataConfig(dataset=f"imagefolder:{IMAGENET}", image_size=16)
    with pytest.raises(DataError, match=r"1000 of its 1000 classes .* n01440764"):
        load_dataset(config)
