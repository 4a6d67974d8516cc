from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from instahide_fl.config import DataConfig
from instahide_fl.data.datasets import load_dataset
from instahide_fl.data.sources.find import find_source
from instahide_fl.data.sources.shard_files import expand_braces
from instahide_fl.data.sources.tar_samples import fetch_members, read_shard
from instahide_fl.errors import DataError


def picture(shade, kind="png", size=(8, 8)):
    file = io.BytesIO()
    Image.new("L", size, shade).save(file, kind)
    return file.getvalue()


def write_tar(path, members):
    """Write a dict of names and bytes or texts as an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def samples(shades, label=lambda shade: f"{shade % 2}\n", column="cls"):
    members = {}
    for shade in shades:
        members[f"{shade:04d}.png"] = picture(shade)
        members[f"{shade:04d}.{column}"] = label(shade)
    return members


def read(path, **settings):
    return find_source(DataConfig(dataset=f"webdataset:{path}", **settings)).read()


def shades(part):
    stored = part.pictures.fetch(0, part.pictures.count)
    return [Image.open(io.BytesIO(data)).getpixel((0, 0)) for data in stored]


@pytest.mark.parametrize(
    ("train", "test", "reference"),
    [
        ("train-0000.tar", "val-0000.tar", ""),
        ("train-{}.tar", "testing-{}.tar", ""),
        ("train/{}.tar", "test/{}.tar", ""),
        ("set-Train-{}-of-00002.tar", "set-test-{}-of-00001.tar", ""),
        ("train-{}.tar", "test-{}.tar", "/{{train,test}}-{{00000..00000}}.tar"),
    ],
)
def test_parts_are_recognised_by_folders_and_shards(tmp_path, train, test, reference):
    write_tar(tmp_path / train.format("00000"), samples(range(6)))
    write_tar(tmp_path / test.format("00000"), samples(range(10, 13)))
    write_tar(tmp_path / "extra-00000.tar", samples([99]))
    content = read(f"{tmp_path}{reference.format()}")
    assert {role: shades(part) for role, part in content.parts.items()} == {
        "train": list(range(6)),
        "test": [10, 11, 12],
    }
    assert content.parts["test"].targets.tolist() == [0, 1, 0]
    assert content.class_names == ["0", "1"]
    assert content.findings.columns == {"image": "png", "label": "cls"}
    assert content.findings.parts_unused == (() if reference else ("extra",))


def test_a_data_set_is_loaded_and_divided_by_the_seed(tmp_path, own_cache):
    write_tar(tmp_path / "0.tar", samples(range(150)))
    write_tar(tmp_path / "1.tar", samples(range(150, 200)))
    loaded = load_dataset(DataConfig(dataset=f"webdataset:{tmp_path}"))
    assert (len(loaded.train), len(loaded.test)) == (160, 40)
    assert loaded.image_shape == (1, 8, 8)
    for part in (loaded.train, loaded.test):  # each image kept its class
        assert (part.images[:, 0, 0, 0].int() % 2).tolist() == part.targets.tolist()
    write_tar(tmp_path / "1.tar", samples(range(100, 140)))
    assert len(load_dataset(DataConfig(dataset=f"webdataset:{tmp_path}")).train) == 152


@pytest.mark.parametrize(
    ("column", "label", "settings", "source"),
    [
        ("cls", lambda n: "b" if n % 2 else " a ", {}, "cls"),
        ("txt", lambda n: "b" if n % 2 else "a", {}, "txt"),
        ("json", lambda n: json.dumps({"id": n, "label": "ab"[n % 2]}), {}, "label"),
        (
            "json",
            lambda n: json.dumps({"label": n, "kind": "ab"[n % 2]}),
            {"label_column": "kind"},
            "kind",
        ),
        ("kind.txt", lambda n: "ab"[n % 2], {"label_column": "kind.txt"}, "kind.txt"),
    ],
)
def test_classes_come_from_members_or_json_fields(
    tmp_path, column, label, settings, source
):
    write_tar(tmp_path / "0.tar", samples(range(5), label, column))
    content = read(tmp_path / "0.tar", **settings)
    assert content.class_names == ["a", "b"]
    assert content.parts["all"].targets.tolist() == [0, 1, 0, 1, 0]
    assert content.findings.columns["label"].startswith(source)


def test_classes_are_named_by_a_file_or_a_member(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples(range(4), lambda n: str(n % 3)))
    names = {"classnames.txt": "cat\ndog\nemu\n"}
    write_tar(tmp_path / "test-0.tar", samples([9], lambda n: "dog") | names)
    content = read(tmp_path)
    assert content.class_names == ["cat", "dog", "emu"]
    assert content.parts["train"].targets.tolist() == [0, 1, 2, 0]
    assert content.parts["test"].targets.tolist() == [1]
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"names 2 classes, .* 1 others \(2\)"):
        read(tmp_path)


def test_owners_come_from_json(tmp_path):
    owners = ["Mia", "ali ", "Mia", "ali"]
    fields = {n: {"cls": n % 2, "writer": owner} for n, owner in enumerate(owners)}
    members = samples(range(4), lambda n: json.dumps(fields[n]), "json")
    write_tar(tmp_path / "0.tar", members)
    content = read(tmp_path, client_column="writer")
    assert content.parts["all"].client_ids.tolist() == [0, 1, 0, 1]
    assert content.findings.warnings == ()
    fields[2]["writer"] = "mia"
    members = samples(range(4), lambda n: json.dumps(fields[n]), "json")
    write_tar(tmp_path / "0.tar", members)
    [warning] = read(tmp_path, client_column="writer").findings.warnings
    assert "'Mia' and 'mia'" in str(warning)
    fields[2]["writer"] = float("nan")
    members = samples(range(4), lambda n: json.dumps(fields[n]), "json")
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(DataError, match=r"1 of 4 training samples have no 'writer'"):
        read(tmp_path, client_column="writer")
    with pytest.raises(DataError, match=r"no 'hospital', only json, png, cls, writer"):
        read(tmp_path, client_column="hospital")


def test_what_is_not_read_is_counted(tmp_path):
    members = samples(range(4)) | {
        "./sub/x.cls": "1",
        "README": "text",
        "__MACOSX/._0001.png": b"",
        "./.DS_Store": b"",
        "0001.mask.png": picture(77),
    }
    write_tar(tmp_path / "train-0000.tar", members)
    write_tar(tmp_path / "train-0002.tar", samples(range(4, 8)))
    (tmp_path / "notes.md").write_text("text")
    content = read(tmp_path)
    findings = content.findings
    assert shades(content.parts["all"]) == list(range(8))
    assert {entry.reason: entry.count for entry in findings.left_out} == {
        "no shards (.tar)": 1,
        "samples without a picture": 2,
        "hidden files": 2,
    }
    assert findings.columns_unused == ("mask.png",)
    assert "numbers 1" in str(findings.warnings[0])
    assert content.parts["all"].pictures.name(5) == "train-0002.tar: 0005"


def test_an_unlabelled_test_part_gives_way_to_the_validation_part(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples(range(4)))
    write_tar(tmp_path / "val-0.tar", samples(range(4, 6)))
    write_tar(tmp_path / "test-0.tar", {"a.png": picture(7), "b.png": picture(8)})
    content = read(tmp_path)
    assert shades(content.parts["test"]) == [4, 5]
    assert "part test has no classes" in str(content.findings.warnings[0])


@pytest.mark.parametrize(
    ("members", "settings", "message"),
    [
        (samples(range(4)) | {"0001.jpg": picture(1)}, {}, r"image-column: 1 of 4"),
        (samples(range(4)) | {"8.png": picture(8)}, {}, r"1 of 5 .* no class \(8\)"),
        (samples(range(4), lambda n: str(n - 1)), {}, r"1 of 4 .* no class \(0000\)"),
        (samples(range(60), lambda n: f"a photo {n}", "txt"), {}, r"are captions"),
        (
            samples(range(4), lambda n: '{"label": 1, "class": 2}', "json"),
            {},
            r"more than one class \(label, class\)",
        ),
        (samples(range(4), lambda n: '{"id": 1}', "json"), {}, r"json, png, id"),
        (samples(range(4), lambda n: "{", "json"), {}, r"0000.json is no JSON"),
        (samples(range(4)), {"label_column": "kind"}, r"have no 'kind'"),
        (samples(range(4)), {"image_column": "jpg"}, r"no sample with a picture in"),
        (samples(range(4)), {"train_part": "other"}, r"'other' is no part"),
        ({"cat/1.png": picture(1), "dog/2.png": picture(2)}, {}, r"is imagefolder:"),
        (
            {
                f"{part}/{n}.{column}": content
                for part in ("train", "val")
                for n in range(2)
                for column, content in (("png", picture(n)), ("cls", str(n)))
            },
            {},
            r"write shards for each part",
        ),
    ],
)
def test_what_cannot_be_read_with_certainty_is_refused(
    tmp_path, members, settings, message
):
    write_tar(tmp_path / "all.tar", members)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "all.tar", **settings)


def test_damaged_and_compressed_shards_are_refused(tmp_path):
    path = tmp_path / "0.tar"
    write_tar(path, samples(range(4)))
    data = path.read_bytes()
    damages = {
        "end of data": data[: len(data) // 4 + 300],
        "a damaged header at byte 2048": data[:2048] + b"x" * 512 + data[2560:],
        "goes on after its end": data + data,
        "is no readable tar": b"PK" + data[2:],
        "empty file": b"",
    }
    for message, damaged in damages.items():
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            read(path)
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DataError, match=r"has a\.png twice"):
        read(path)
    path.rename(tmp_path / "0.tar.gz")
    for reference in (tmp_path, tmp_path / "0.tar.gz"):
        with pytest.raises(DataError, match="gunzip"):
            read(reference)


def test_missing_shards_of_a_pattern_are_named(tmp_path):
    write_tar(tmp_path / "a-00.tar", samples(range(4)))
    with pytest.raises(DataError, match=r"2 of 3: a-01\.tar, a-02\.tar"):
        read(f"{tmp_path}/a-{{00..02}}.tar")
    assert expand_braces("{b,a}-{8..10}") == [
        "a-10",
        "a-8",
        "a-9",
        "b-10",
        "b-8",
        "b-9",
    ]
    with pytest.raises(DataError, match=r"no range of shards"):
        expand_braces("a-{3..1}.tar")


def test_the_kind_of_archive_is_told(tmp_path):
    write_tar(tmp_path / "0.tar", samples(range(4)))
    for path in (tmp_path, tmp_path / "0.tar"):
        with pytest.raises(DataError, match=f"give webdataset:{path}"):
            find_source(DataConfig(dataset=f"imagefolder:{path}"))
    captioned = {
        f"{folder}/{number}.{column}": content
        for folder in ("cat", "dog")
        for number in range(2)
        for column, content in (("png", picture(number)), ("txt", "a caption"))
    }
    write_tar(tmp_path / "folders" / "archive.tar", captioned)
    archive = tmp_path / "folders" / "archive.tar"
    content = find_source(DataConfig(dataset=f"imagefolder:{archive}")).read()
    assert content.class_names == ["cat", "dog"]
    (tmp_path / "folders" / "archive.tar").unlink()
    by_hugging_face = DataConfig(dataset=f"hf:{tmp_path}")
    assert shades(find_source(by_hugging_face).read().parts["all"]) == [0, 1, 2, 3]


def test_members_are_fetched_from_where_they_lie(tmp_path):
    paths = [tmp_path / "a.tar", tmp_path / "b.tar"]
    rng = np.random.default_rng(0)
    contents = {}
    for path in paths:
        members = {f"{n}.bin": rng.bytes(n * 300) for n in range(1, 6)}
        # A name beyond a header's 100 characters has a header of its own.
        members[f"{'x' * 150}.bin"] = rng.bytes(10)
        write_tar(path, members)
        contents |= {(path, name): data for name, data in members.items()}
    spans = [
        sample.columns["bin"]
        for number, path in enumerate(paths)
        for sample in read_shard(path, number).samples
    ]
    assert fetch_members(paths, spans) == list(contents.values())
    assert fetch_members(paths, spans[::-1]) == list(contents.values())[::-1]
