"""Pictures of every kind of pixels become the 8 bits that they stand for."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from instahide_fl.config import DataConfig
from instahide_fl.data.data_report import DataReport
from instahide_fl.data.datasets import load_dataset, load_private_images
from instahide_fl.errors import DataError
from tests.library.pictures import write_noise_pictures, write_parquet

NAMES = [
    f"{part}/{kind}/{n}" for part in ("train", "test") for kind in "ab" for n in "12"
]


def shades(number):
    """A picture of 64 shades of its own, 0..255, f64[8,8]."""
    values = np.linspace(0, 255, 64).reshape(8, 8).round()
    return np.roll(values, number)


def write_set(folder, save, suffix):
    """Save one picture for each of `NAMES` with `save(shades, path)`."""
    for number, name in enumerate(NAMES):
        path = folder / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(shades(number), path)


def load_folder(folder, **settings):
    return load_dataset(DataConfig(dataset=f"imagefolder:{folder}", **settings))


def report_of(folder, **settings) -> DataReport:
    report = load_folder(folder, **settings).report
    assert report is not None
    return report


def scaled(top, dtype, low=0):
    """Save shades as numbers from low to top."""
    return lambda values, path: Image.fromarray(
        (values / 255 * (top - low) + low).astype(dtype)
    ).save(path)


def unsigned_32_bits(values, path):
    bits = (values / 255 * (2**32 - 1)).astype(np.uint32).view(np.int32)
    Image.fromarray(bits).save(path, tiffinfo={339: 1})
    written = path.read_bytes()  # Pillow writes tag 339 as signed whatever it is told
    entry = (339).to_bytes(2, "little") + (3).to_bytes(2, "little")
    place = written.index(entry) + 8
    path.write_bytes(written[:place] + b"\1" + written[place + 1 :])


def deep_colour(top):
    def save(values, path):
        grey = (values / 255 * top).astype(np.uint16)
        assert cv2.imwrite(str(path), np.dstack([grey, grey[::-1], grey]))

    return save


def deep_grey_with_opacity(values, path):
    grey = (values / 255 * 65535).astype(np.uint16)
    opaque = np.full_like(grey, 65535)
    opaque[0] = 0
    assert cv2.imwrite(str(path), np.dstack([grey, grey, grey, opaque]))


@pytest.mark.parametrize(
    ("suffix", "save", "value_range", "stored_as"),
    [
        ("png", scaled(255, np.uint8), (0, 255), "8-bit grey"),
        ("png", scaled(255, np.uint16), (0, 255), "16-bit grey"),
        ("png", scaled(4095, np.uint16), (0, 4095), "16-bit grey"),
        ("tif", scaled(4095, np.uint16), (0, 4095), "16-bit grey"),
        ("png", scaled(65535, np.uint16), (0, 65535), "16-bit grey"),
        ("tif", scaled(255, np.int32), (0, 255), "32-bit grey"),
        ("tif", scaled(2**31 - 1, np.int32), (0, 2**31 - 1), "32-bit grey"),
        ("tif", scaled(1000, np.int32, -1000), (-1000, 1000), "32-bit grey"),
        ("tif", unsigned_32_bits, (0, 2**32 - 1), "32-bit grey"),
        ("tif", scaled(1, np.float32), (0, 1), "float grey"),
        ("tif", scaled(255, np.float32), (0, 255), "float grey"),
        ("tif", scaled(3000, np.float32, -1000), (-1000, 3000), "float grey"),
    ],
)
def test_grey_pictures_of_any_depth_have_the_same_shades(
    data_folder, own_cache, suffix, save, value_range, stored_as
):
    write_set(data_folder, save, suffix)
    loaded = load_folder(data_folder)
    report = loaded.report
    assert report is not None
    assert report.pixels.value_range == value_range
    assert report.pixels.stored_as == {stored_as: 8}
    assert (report.channels, report.levels, report.warnings) == (1, 64, ())
    expected = torch.from_numpy(np.stack([shades(n) for n in range(4)])[:, None])
    assert (loaded.train.images - expected).abs().max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_colour_of_sixteen_bits_is_not_cut_to_its_upper_eight(
    data_folder, own_cache, suffix, top
):
    write_set(data_folder, deep_colour(top), suffix)
    loaded = load_folder(data_folder)
    report = loaded.report
    assert report is not None
    assert report.pixels.stored_as == {"16-bit colour": 8}
    assert report.pixels.value_range == (0, top)
    first = loaded.train.images[0].double().numpy()
    assert np.abs(first[0] - shades(0)).max() <= 1
    assert np.abs(first[1] - shades(0)[::-1]).max() <= 1


def test_opacity_of_sixteen_bits_shows_white(data_folder, own_cache):
    write_set(data_folder, deep_grey_with_opacity, "png")
    loaded = load_folder(data_folder)
    assert (loaded.train.images[:, :, 0] == 255).all()
    expected = np.broadcast_to(shades(0)[1:], (3, 7, 8))
    assert np.abs(loaded.train.images[0, :, 1:].numpy() - expected).max() <= 1


def test_one_range_is_for_all_parts_and_uneven_parts_are_told(data_folder, own_cache):
    write_set(data_folder, scaled(4095, np.uint16), "png")
    for number, path in enumerate(sorted(data_folder.glob("test/*/*.png"))):
        scaled(65535, np.uint16)(shades(number), path)
    report = report_of(data_folder)
    assert report.pixels.value_range == (0, 65535)
    assert "of different ranges" in str(report.warnings[0])


def test_depths_side_by_side_need_a_range(data_folder, own_cache):
    write_set(data_folder, scaled(4095, np.uint16), "png")
    scaled(255, np.uint8)(shades(50), data_folder / "train" / "a" / "3.png")
    with pytest.raises(
        DataError, match=r"8 16-bit grey, 1 8-bit grey\).*data\.value-range .* 0:4095"
    ):
        load_folder(data_folder)
    loaded = load_folder(data_folder, value_range="0:4095")
    assert np.abs(loaded.train.images[2, 0].numpy() - shades(50)).max() == 0
    assert np.abs(loaded.train.images[0, 0].numpy() - shades(0)).max() <= 1


def test_a_range_of_the_settings_clips_and_says_so(data_folder, own_cache):
    write_set(data_folder, scaled(3000, np.float32, -1000), "tif")
    report = report_of(data_folder, value_range="-1000:1000")
    assert report.pixels.value_range_reason == "data.value-range = -1000:1000"
    assert report.pixels.clipped_share == pytest.approx(0.5, abs=0.01)
    assert "50.0% of the stored values lie outside" in str(report.warnings[0])
    assert "-1000:3000" in report.warnings[0].remedy
    report = report_of(data_folder, value_range="-100000:100000")
    assert report.levels < 32
    assert "set data.value-range = -1000:3000" in report.warnings[0].remedy


def test_a_range_of_the_settings_is_for_eight_bits_where_nothing_is_deeper(
    data_folder, own_cache
):
    write_set(data_folder, scaled(100, np.uint8), "png")
    loaded = load_folder(data_folder, value_range="0:100")
    assert np.abs(loaded.train.images[0, 0].numpy() - shades(0)).max() <= 3
    noise = load_dataset(DataConfig(dataset="noise:4x3x8x8", value_range="0:510"))
    assert noise.train.images.max() == 128


def test_values_that_are_no_numbers_are_refused(data_folder, own_cache):
    write_set(data_folder, scaled(1, np.float32), "tif")
    for name in ("train/a/1.tif", "train/b/2.tif"):
        values = np.full((8, 8), np.nan, np.float32)
        Image.fromarray(values).save(data_folder / name)
    with pytest.raises(DataError, match=r"2 of 4 .*128 values .*: a/1\.tif, b/2"):
        load_folder(data_folder)


def test_any_coloured_picture_makes_a_set_coloured(data_folder, own_cache):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    rows = [pixels[0, ..., 0], *pixels[1:]]  # the first is grey
    write_parquet(
        data_folder / "set" / "data" / "train-0.parquet", rows, [0, 1] * 5, "xy"
    )
    write_parquet(data_folder / "set" / "data" / "test-0.parquet", rows[:1], [0], "xy")
    config = DataConfig(dataset=f"hf:{data_folder / 'set'}")
    loaded = load_dataset(config)
    assert loaded.image_shape == (3, 8, 8)
    assert loaded.report is not None
    assert loaded.report.pixels.channels_reason == "9 of 11 pictures are coloured"
    assert torch.equal(
        loaded.train.images[1], torch.from_numpy(pixels[1].transpose(2, 0, 1))
    )
    grey = load_dataset(config.model_copy(update={"channels": 1}))
    assert grey.image_shape == (1, 8, 8)
    assert torch.equal(grey.train.images[0, 0], torch.from_numpy(rows[0]))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_of_the_settings_are_for_packaged_sets_too(own_cache, channels):
    name = f"noise:8x{4 - channels}x8x8"
    loaded = load_dataset(DataConfig(dataset=name, channels=channels))
    assert loaded.image_shape == (channels, 8, 8)


def test_palettes_are_coloured_unless_all_their_colours_are_grey(
    data_folder, own_cache
):
    def save_palette(values, path):
        Image.fromarray(values.astype(np.uint8)).convert("P").save(path)

    write_set(data_folder, save_palette, "png")
    assert report_of(data_folder).channels == 1
    coloured = Image.new("RGB", (8, 8), (255, 0, 0))
    coloured.quantize(4).save(data_folder / "train" / "a" / "3.png")
    assert report_of(data_folder).channels == 3


def test_sets_of_equal_images_are_refused(data_folder, own_cache):
    def clear(values, path):
        pixels = np.dstack([values, values, values, np.zeros((8, 8))])
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    write_set(data_folder / "clear", clear, "png")
    with pytest.raises(DataError, match=r"all 8 images .* same pixels"):
        load_folder(data_folder / "clear")
    write_set(data_folder / "set", scaled(255, np.uint8), "png")
    with pytest.raises(DataError, match=r"check the files, or data\.value-range = 3"):
        load_folder(data_folder / "set", value_range="300:900")


def test_a_channel_without_contrast_is_told(data_folder, own_cache):
    def blue(values, path):
        pixels = np.dstack([np.zeros((8, 8, 2)), values]).astype(np.uint8)
        Image.fromarray(pixels).save(path)

    write_set(data_folder, blue, "png")
    (warning,) = report_of(data_folder).warnings
    assert "same value everywhere in red and green" in str(warning)


def test_tiny_pictures_and_great_enlargements_are_told(data_folder, own_cache):
    write_noise_pictures(data_folder / "set" / "a", 3)
    write_noise_pictures(data_folder / "set" / "b", 3, start=10)
    Image.new("RGB", (1, 1), (9, 9, 9)).save(data_folder / "set" / "b" / "tiny.png")
    report = report_of(data_folder / "set", image_size=16)
    assert report.pixels.sizes == "1x1 to 8x8 pixels, resized to 16x16"
    (tiny, *_) = map(str, report.warnings)
    assert "1 of 7 pictures is smaller than 4 pixels (the smallest 1x1)" in tiny
    assert ", enlarged to 16" in tiny
    wide = report_of(data_folder / "set", image_size=64)
    assert "6 of 7 pictures are enlarged more than 4 times" in str(wide.warnings[1])


def test_parts_of_different_sizes_are_refused(data_folder, own_cache):
    write_set(data_folder, scaled(255, np.uint8), "png")
    for path in data_folder.glob("test/*/*.png"):
        Image.open(path).resize((9, 9)).save(path)
    with pytest.raises(DataError, match=r"8x8 in train, 9x9 in test\): set data"):
        load_folder(data_folder)


def test_further_frames_are_counted_and_bombs_are_named(
    data_folder, own_cache, monkeypatch
):
    write_set(data_folder, scaled(255, np.uint8), "png")
    pages = [Image.fromarray(shades(n).astype(np.uint8)) for n in (90, 91)]
    path = data_folder / "train" / "a" / "3.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    loaded = load_folder(data_folder)
    assert loaded.report is not None
    assert "1 file holds several frames" in str(loaded.report.warnings[0])
    assert np.abs(loaded.train.images[2, 0].numpy() - shades(90)).max() == 0
    Image.new("L", (40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match=r"1 of 5 images .*: a/3\.tif .*bomb"):
        load_folder(data_folder)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((8, 8)), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 3), np.int32)],
)
def test_tiffs_that_pillow_does_not_read_are_to_be_converted(
    data_folder, own_cache, pixels
):
    write_set(data_folder, scaled(255, np.uint8), "png")
    cv2.imwrite(str(data_folder / "train" / "a" / "3.tif"), pixels)
    with pytest.raises(
        DataError, match=r"1 of 5 .*3\.tif .*: convert them to 8- or 16"
    ):
        load_folder(data_folder)


def test_a_deployed_client_does_not_choose_a_range_alone(
    tmp_path, data_folder, own_cache
):
    write_set(data_folder, scaled(4095, np.uint16), "png")
    config = DataConfig(dataset=f"imagefolder:{data_folder}")
    with pytest.raises(DataError, match=r"8 .* deeper than 8 bits.* = 0:4095"):
        load_private_images(config, tmp_path / "client")
    agreed = config.model_copy(update={"value_range": "0:4095"})
    images = load_private_images(agreed, tmp_path / "client").split.images
    assert np.abs(images[0, 0].numpy() - shades(0)).max() <= 1
