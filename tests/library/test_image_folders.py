from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from instahide_fl.config import DataConfig
from instahide_fl.data.datasets import load_dataset
from instahide_fl.data.sources.base import BLOCK_IMAGES
from instahide_fl.data.sources.find import find_source
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


def test_classes_that_are_written_in_two_ways_are_named(tmp_path):
    composed, decomposed = "k\u00e4", "ka\u0308"  # look the same: a file system's copy
    names = [f"train/{composed}/1.png", "train/b/1.png", "val/B/1.png"]
    write_pictures(tmp_path, [*names, f"val/{decomposed}/1.png"])
    source = find_source(DataConfig(dataset=f"imagefolder:{tmp_path}"))
    with pytest.raises(DataError, match=r"write 'B' like 'b' if they are the same"):
        source.read()
    write_pictures(tmp_path / "flat", [f"{composed}/1.png", f"{decomposed}/1.png"])
    source = find_source(DataConfig(dataset=f"imagefolder:{tmp_path / 'flat'}"))
    (warning,) = source.read().findings.warnings
    assert repr(composed) in str(warning)
    assert ascii(decomposed) in str(warning)


def test_a_cached_class_that_does_not_exist_is_damage(tmp_path, own_cache):
    folder = tmp_path / "set"
    write_pictures(folder, [f"{kind}/{i}.png" for kind in "ab" for i in range(5)])
    config = DataConfig(dataset=f"imagefolder:{folder}")
    load_dataset(config)
    for path in own_cache.rglob("t*-targets.npy"):
        np.save(path, np.load(path) + 2**40)
    with pytest.raises(DataError, match=r"damaged \(an image has an unknown class\)"):
        load_dataset(config)


def test_pictures_and_their_masks_are_no_classes(tmp_path):
    write_pictures(tmp_path, ["train/Images/1.png", "train/masks/1.png"])
    source = find_source(DataConfig(dataset=f"imagefolder:{tmp_path}"))
    (warning,) = source.read().findings.warnings
    assert "Images, masks are taken for classes" in str(warning)


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

    refused("missing", "no such folder or file")
    (tmp_path / "empty").mkdir()
    refused("empty", "at least two classes .* there is none")
    write_pictures(tmp_path / "one", ["a/1.png", "a/2.png"])
    refused("one", "there is only a")
    write_pictures(tmp_path / "loose", ["a/1.png", "b/2.png", "3.png"])
    refused("loose", r"1 image in .* has no label.*3\.png")
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


def read(path, **settings):
    return find_source(DataConfig(dataset=f"imagefolder:{path}", **settings)).read()


def test_what_is_no_folder_of_pictures_is_refused_with_a_remedy(tmp_path):
    for name, match in (
        ("notes.pdf", r"is no folder: give .* archive .* table"),
        ("train.parquet", r"or hf:.*train\.parquet"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match=match):
            read(tmp_path / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "train.parquet").rename(tmp_path / "data" / "train.parquet")
    with pytest.raises(DataError, match=rf"Hugging Face files: give hf:{tmp_path}"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_an_archive_is_read_as_the_folder_in_it(tmp_path, own_cache, suffix):
    kinds = {"zip": "zip", "tar": "tar", "tar.gz": "gztar"}
    folder = tmp_path / "set"
    names = [f"{part}/{kind}/1.png" for part in ("Train", "Test") for kind in "ab"]
    write_pictures(folder, [*names, "Train/a/.Trash-1000/2.png"])
    archive = shutil.make_archive(tmp_path / "x", kinds[suffix], tmp_path, "set")
    assert archive.endswith(suffix)
    loaded = load_dataset(DataConfig(dataset=f"imagefolder:{archive}"))
    unpacked = load_dataset(DataConfig(dataset=f"imagefolder:{folder}"))
    assert loaded.digest == unpacked.digest
    assert torch.equal(loaded.test.images, unpacked.test.images)
    assert loaded.report.left_out == 1
    expected = {"train": "folder set/Train", "test": "folder set/Test"}
    assert loaded.report.source.parts_from == expected


def test_links_and_pipes_in_a_set_are_harmless(tmp_path):
    names = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(12)]
    write_pictures(tmp_path, names)
    (tmp_path / "cat" / "all").symlink_to("..")
    (tmp_path / "cat" / "more").symlink_to("../dog")
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    content = read(tmp_path)
    assert content.parts["all"].targets.tolist() == [0] * 12 + [1] * 12
    assert sum(entry.count for entry in content.findings.left_out) == 4
    assert "cat/gone.png" in str(content.findings.warnings[0])


def test_pictures_that_cannot_be_read_are_never_passed_over_in_silence(tmp_path):
    write_pictures(tmp_path, ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"])
    for number in range(12):
        (tmp_path / "cat" / f"{number}.dcm").write_bytes(b"x")
    warnings = read(tmp_path).findings.warnings
    assert "12 DICOM files (.dcm) are left out (cat/0.dcm, cat/1.dcm" in str(
        warnings[0]
    )
    for number in (1, 2):
        (tmp_path / "cat" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"classes: cat \(12 \.dcm files .* pydicom"):
        read(tmp_path)


def test_names_that_are_not_utf_8_stop_no_run(tmp_path, own_cache):
    write_pictures(
        tmp_path / "set", ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
    )
    folder = os.fsencode(tmp_path / "set")
    os.rename(folder + b"/cat/1.png", folder + b"/cat/caf\xe9.png")
    (tmp_path / "set" / "notes.txt").write_text("x")
    os.rename(folder + b"/notes.txt", folder + b"/caf\xe9.txt")
    loaded = load_dataset(DataConfig(dataset=f"imagefolder:{tmp_path / 'set'}"))
    assert len(loaded.train) + len(loaded.test) == 4
    json.dumps(loaded.report.to_json(), ensure_ascii=False).encode()
    os.rename(folder + b"/cat", folder + b"/caf\xe9")
    with pytest.raises(
        DataError, match=r"caf\\udce9 in .* not UTF-8: .* convmv"
    ) as error:
        load_dataset(DataConfig(dataset=f"imagefolder:{tmp_path / 'set'}"))
    str(error.value).encode()


def test_parts_are_decided_by_names_or_by_settings(tmp_path):
    names = [f"{part}/{kind}/1.png" for part in ("one", "two") for kind in "ab"]
    write_pictures(tmp_path, names)
    with pytest.raises(DataError, match=r"set data\.train-part and data\.test-part"):
        read(tmp_path)
    source = find_source(
        DataConfig(dataset=f"imagefolder:{tmp_path}", train_part="one")
    )
    assert list(source.read().parts) == ["all"]
    settings = {"train_part": "one", "test_part": "two"}
    other = find_source(DataConfig(dataset=f"imagefolder:{tmp_path}", **settings))
    assert list(other.read().parts) == ["train", "test"]
    assert other.identity != source.identity


@pytest.mark.skipif(not IMAGENET.is_dir(), reason="no ImageNet on this machine")
def test_one_image_a_class_cannot_be_divided(own_cache):
    config = DataConfig(dataset=f"imagefolder:{IMAGENET}", image_size=16)
    with pytest.raises(DataError, match=r"1000 of its 1000 classes .* n01440764"):
        load_dataset(config)
