from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from instahide_fl.data.photos_pool import load_photos
from instahide_fl.data.pool import MixingPool
from instahide_fl.data.pool_build import build_pool
from instahide_fl.data.pool_manifest import build_facts
from instahide_fl.data.pool_patches import (
    PoolBuildOptions,
    count_keypoints,
    patch_boxes,
    read_patches,
    shrink,
)
from instahide_fl.data.pool_source import open_pool_source
from instahide_fl.errors import OutputError, PoolError
from instahide_fl.rng import stream
from instahide_fl.types import ChannelStatistics
from tests.real_data import IMAGENET

COMMAND = [sys.executable, "-c", "from instahide_fl.cli import main; main()"]


def list_images(source):
    return list(open_pool_source(source).names)


QUICK = PoolBuildOptions(size=16, crops=3, patch_size=96, seed=4)


@pytest.fixture(scope="module")
def photos():
    return [Image.fromarray(photo).resize((200, 150)) for photo in load_photos()[:6]]


@pytest.fixture
def tree(tmp_path, photos):
    """Nested and flat images of several formats, a broken one, a tiny one, a loop."""
    top = tmp_path / "source"
    (top / "n01" / "deep").mkdir(parents=True)
    (top / "n02").mkdir()
    photos[0].save(top / "flat.JPEG", quality=95)
    photos[1].save(top / "n01" / "a.png")
    photos[2].save(top / "n01" / "deep" / "b.Webp")
    photos[3].convert("CMYK").save(top / "n02" / "c.tif")
    photos[4].convert("L").save(top / "n02" / "d.bmp")
    photos[5].resize((60, 80)).save(top / "n02" / "small.ppm")
    photos[5].resize((15, 80)).save(top / "n02" / "tiny.png")
    whole = (top / "flat.JPEG").read_bytes()
    (top / "n02" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (top / "notes.txt").write_text("no image")
    (top / "n01" / "loop").symlink_to(top)
    (top / "itself").symlink_to(top / "itself")
    return top


def many(folder, photos, count):
    folder.mkdir()
    for number in range(count):
        name = folder / f"{number:03d}.jpg"
        photos[number % len(photos)].rotate(number).save(name, quality=90)
    return folder


def test_a_tree_is_listed_sorted_and_without_going_round(tree, tmp_path):
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "one").symlink_to(tree / "n01" / "deep")
    (tmp_path / "link" / "two").symlink_to(tree / "n01" / "deep")
    assert list_images(tmp_path / "link") == ["one/b.Webp", "two/b.Webp"]
    names = list_images(tree)
    assert names == sorted(names)
    assert len(names) == 8
    assert {"flat.JPEG", "n01/deep/b.Webp", "n02/broken.jpg"} <= set(names)


def test_the_pool_is_what_its_manifest_says(tree, tmp_path):
    built = build_pool(tree, tmp_path / "pool", QUICK)
    assert built.report.images == 8
    assert (built.report.unreadable, built.report.too_small) == (1, 1)
    assert "n02/broken.jpg" in built.report.failures[0]
    pool = MixingPool.open(built.folder)
    pool.verify()
    assert pool.image_shape == (3, 16, 16)
    assert len(pool) == built.report.patches_kept
    measured = ChannelStatistics.of(pool.images)
    assert pool.statistics.mean == pytest.approx(measured.mean)
    assert pool.statistics.std == pytest.approx(measured.std)
    again = MixingPool.from_images(pool.images, pool.source).save(tmp_path / "again")
    first, second = (
        (folder / "images.npy").read_bytes() for folder in (built.folder, again.folder)
    )
    assert first == second
    manifests = [
        json.loads((folder / "manifest.json").read_text())
        for folder in (built.folder, again.folder)
    ]
    assert manifests[1].keys() < manifests[0].keys()
    assert manifests[0]["patch_size"] == 96
    assert manifests[0]["counts"]["patches_tried"] == 3 * 6
    assert not (tmp_path / "pool.building").exists()


def test_the_filter_judges_patches_before_they_are_shrunk(tree, tmp_path):
    built = build_pool(tree, tmp_path / "pool", QUICK)
    everything = PoolBuildOptions(16, 3, 0, 96, seed=4)
    unfiltered = build_pool(tree, tmp_path / "all", everything)
    expected, dropped = [], 0
    for name in list_images(tree):
        if "broken" in name:
            continue
        for patch in read_patches(tree / name, QUICK, stream(4, "pool", name)):
            if count_keypoints(patch) > 40:
                expected.append(shrink(patch, 16, 3))
            else:
                dropped += 1
    assert expected
    assert dropped
    kept = MixingPool.open(built.folder).images
    assert torch.equal(kept, torch.from_numpy(np.stack(expected)))
    assert len(MixingPool.open(unfiltered.folder)) == len(expected) + dropped


def test_any_number_of_processes_gives_the_same_pool(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("instahide_fl.data.pool_build.CHUNK_IMAGES", 5)
    source = many(tmp_path / "source", photos, 24)
    seen = []
    one = build_pool(source, tmp_path / "one", QUICK, 1)
    two = build_pool(source, tmp_path / "two", QUICK, 2, lambda *c: seen.append(c))
    assert one.sha256 == two.sha256
    assert one.report == two.report
    assert seen[0] == (0, 24, 0)
    assert seen[-1] == (24, 24, two.report.patches_kept)
    other = PoolBuildOptions(16, 3, 40, 96, seed=5)
    assert build_pool(source, tmp_path / "other", other).sha256 != one.sha256


def test_positions_are_distinct_squares_inside_the_image(rng):
    for width, height, expected in ((130, 129, 4), (128, 128, 1), (90, 91, 2)):
        boxes = patch_boxes(width, height, PoolBuildOptions(), rng)
        assert len(set(boxes)) == len(boxes) == expected
        side = min(128, width, height)
        for left, top, right, bottom in boxes:
            assert right - left == bottom - top == side
            assert 0 <= left <= right <= width
            assert 0 <= top <= bottom <= height
    assert patch_boxes(31, 400, PoolBuildOptions(), rng) == []


def test_grey_pools(tree, tmp_path):
    options = PoolBuildOptions(16, 1, 0, channels=1)
    built = build_pool(tree, tmp_path / "grey", options)
    pool = MixingPool.open(built.folder)
    assert pool.image_shape == (1, 16, 16)
    with pytest.raises(PoolError, match="1x16x16"):
        pool.check_fits((3, 16, 16), 2)
    with pytest.raises(PoolError, match=r"the pool .*grey has 6"):
        pool.check_fits((1, 16, 16), 7)


def test_sources_without_a_usable_patch_leave_nothing_behind(tmp_path, photos):
    source, out = tmp_path / "source", tmp_path / "pool"

    def fails(pattern, options=QUICK):
        with pytest.raises(PoolError, match=pattern):
            build_pool(source, out, options)
        assert {path.name for path in tmp_path.iterdir()} <= {"source"}

    fails("no such folder")
    source.mkdir()
    fails("no images below")
    (source / "a.jpg").write_bytes(b"")
    fails(r"none of the 1 images .* can be read: a\.jpg \(cannot identify")
    Image.new("RGB", (10, 10)).save(source / "b.png")
    fails("1 are smaller than --size 16, 1 cannot be read")
    Image.new("RGB", (200, 200), "red").save(source / "c.png")
    fails(r"3 images, 3 patches .* best 0 key points\): --min-keypoints is 40, lower")
    photos[0].save(source / "d.png")
    fails("best [1-9][0-9]* key points", PoolBuildOptions(16, min_keypoints=99_999))
    with pytest.raises(PoolError, match="neither a folder nor"):
        build_pool(source / "a.jpg", out, QUICK)


def test_options_that_cannot_be(tmp_path):
    for wrong, pattern in (
        ({"size": 200}, "never enlarged"),
        ({"channels": 2}, "1 .grey. or 3"),
        ({"crops": 0}, "--crops must be at least 1"),
        ({"min_keypoints": -1}, "--min-keypoints must be at least 0"),
    ):
        with pytest.raises(PoolError, match=pattern):
            PoolBuildOptions(**wrong)
    with pytest.raises(PoolError, match="--jobs"):
        build_pool(tmp_path, tmp_path / "pool", QUICK, jobs=0)


def test_an_existing_pool_and_another_unfinished_build_stay(tree, tmp_path):
    out = tmp_path / "pool"
    (out / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match="exists already"):
        build_pool(tree, out, QUICK)
    work = tmp_path / "new.building"
    work.mkdir()
    (work / "mine.txt").write_text("")
    with pytest.raises(OutputError, match=r"new\.building holds .* delete this folder"):
        build_pool(tree, tmp_path / "new", QUICK)
    assert (work / "mine.txt").exists()


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_an_archive_gives_the_pool_of_its_folder(tree, tmp_path, suffix):
    path = tmp_path / f"source{suffix}"
    files = {name: (tree / name).read_bytes() for name in list_images(tree)}
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, f"w:{suffix[5:]}") as archive:
            archive.add(tree, ".", recursive=True)
    of_folder = build_pool(tree, tmp_path / "folder", QUICK)
    of_archive = build_pool(path, tmp_path / "archive", QUICK, jobs=2)
    assert of_archive.sha256 == of_folder.sha256
    assert of_archive.report == of_folder.report


def test_pools_of_shards_and_patterns(tmp_path, photos):
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in range(2):
        files = {"0.cls": b"1", ".hidden.png": b"", "__MACOSX/a.png": b""}
        for number in range(3):
            file = io.BytesIO()
            photos[3 * shard + number].save(file, "png")
            files[f"{number}.png"] = file.getvalue()
        write_tar(shards / f"train-{shard}.tar", files)
    (shards / "notes.txt").write_text("text")
    built = build_pool(shards, tmp_path / "pool", QUICK, jobs=2)
    pattern = shards / "train-{0..1}.tar"
    of_pattern = build_pool(pattern, tmp_path / "pattern", QUICK)
    assert built.sha256 == of_pattern.sha256
    assert built.report.images == 6
    assert list_images(pattern)[2:4] == ["train-0.tar/2.png", "train-1.tar/0.png"]
    assert {entry.reason: entry.count for entry in built.left_out} == {
        "hidden files and folders, and what programs leave behind": 4,
        "file type .cls": 2,
        "file type .txt": 1,
    }
    facts = [text for title, text in built.facts() if title == "left out"]
    assert "2: file type .cls (train-0.tar/0.cls, train-1.tar/0.cls)" in facts
    with pytest.raises(PoolError, match=r"1 of 3 archives .* \(train-2\.tar\)"):
        build_pool(shards / "train-{0..2}.tar", tmp_path / "missing", QUICK)


def test_an_unfinished_build_of_an_archive_that_changed_stays(tmp_path, photos):
    file = io.BytesIO()
    photos[0].save(file, "png")
    path = tmp_path / "source.tar"
    write_tar(path, {"0.png": file.getvalue()})

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_pool(path, tmp_path / "pool", QUICK, progress=stop)
    write_tar(path, {"0.png": file.getvalue() + b" " * 10240})
    with pytest.raises(OutputError, match="archives"):
        build_pool(path, tmp_path / "pool", QUICK)


def test_deep_pictures_need_a_range(tmp_path, photos):
    source = tmp_path / "source"
    source.mkdir()
    shallow = np.asarray(photos[0].convert("RGB"))
    # 12 bits in 16, as cameras and scanners write them
    deep = shallow.astype(np.uint16) * 16
    Image.fromarray(deep[:, :, 1]).save(source / "grey.png")
    Image.fromarray(deep[:, :, 1].astype(np.float32)).save(source / "float.tiff")
    cv2.imwrite(str(source / "colour.png"), deep[:, :, ::-1])
    cv2.imwrite(str(source / "colour.tiff"), deep[:, :, ::-1])
    whole = PoolBuildOptions(16, 1, 0, 150, value_range="0:4080")
    with pytest.raises(PoolError, match=r"none of the 4 images .*--value-range LOW"):
        build_pool(source, tmp_path / "refused", PoolBuildOptions(16, 1, 0))
    for name in list_images(source):
        [patch] = read_patches(source / name, whole, stream(0, "x"))
        box = patch_boxes(200, 150, whole, stream(0, "x"))[0]
        expected = shallow[box[1] : box[3], box[0] : box[2]]
        if "colour" not in name:
            expected = np.repeat(expected[:, :, 1:2], 3, axis=2)
        assert np.array_equal(patch, expected), name
    built = build_pool(source, tmp_path / "pool", whole)
    manifest = json.loads((built.folder / "manifest.json").read_text())
    assert manifest["value_range"] == "0:4080"
    assert built.report.patches_kept == 4
    with pytest.raises(PoolError, match="--value-range must be LOW:HIGH"):
        PoolBuildOptions(value_range="5:5")


def start_build(source, out, *options):
    return subprocess.Popen(
        [*COMMAND, "pool", "build", str(source), "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_chunk(work, process):
    deadline = time.monotonic() + 180
    while not list(work.glob("chunk-*.npz")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, process.kill()
        time.sleep(0.01)


@pytest.mark.long
def test_an_interrupted_build_continues_to_the_same_pool(photos, tmp_path):
    source = many(tmp_path / "source", photos, 200)
    out, work = tmp_path / "pool", tmp_path / "pool.building"
    process = start_build(source, out, "--jobs", "1")
    wait_for_chunk(work, process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C: every process gets it
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130
    assert err == "interrupted: the same command continues\n"
    first = {path: path.stat().st_mtime_ns for path in work.glob("chunk-*.npz")}
    process = start_build(source, out, "--jobs", "1", "--crops", "5")
    _, err = process.communicate(timeout=180)
    assert process.returncode == 2
    assert "crops 4, now 5" in err
    process = start_build(source, out, "--jobs", "1")
    while set(work.glob("chunk-*.npz")) == set(first) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not out.exists()
    damaged = min(first)
    damaged.write_bytes(damaged.read_bytes()[:100])
    built = build_pool(source, out, PoolBuildOptions())
    assert built.report.images == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool", "source"]
    whole = build_pool(source, tmp_path / "whole", PoolBuildOptions(), 2)
    assert built.sha256 == whole.sha256
    assert built.report == whole.report


def test_pools_are_built_without_pytorch():
    code = (
        "import sys, instahide_fl.cli, instahide_fl.progress, "
        "instahide_fl.data.pool_build; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_facts_of_a_pool_that_was_not_built(pool, tmp_path):
    saved = pool.save(tmp_path / "pool")
    assert saved.folder is not None
    manifest = json.loads((saved.folder / "manifest.json").read_text())
    assert build_facts(manifest) == []


@pytest.mark.skipif(not IMAGENET.is_dir(), reason="no ImageNet on this machine")
def test_photographs_of_imagenet(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for folder in sorted(IMAGENET.iterdir())[:40]:
        (source / folder.name).symlink_to(folder)
    built = build_pool(source, tmp_path / "pool", PoolBuildOptions(), 2)
    assert built.report.images == 40
    assert 0.6 < built.report.patches_kept / built.report.patches_tried < 1
    MixingPool.open(built.folder).verify()
