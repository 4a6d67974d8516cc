"""Data sets in folders, files and on the hub."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import pytest
import torch

from instahide_fl.config import DataConfig
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import augmentation_for, load_dataset
from instahide_fl.data.sources.hugging_face.source import open_hugging_face
from instahide_fl.errors import DataError
from tests.library.hugging_face_tables import (
    PIXELS,
    ROWS,
    as_paths,
    origins,
    png,
    read,
    sentences,
    structs,
    write_rows,
    write_table,
)
from tests.library.pictures import (
    write_hugging_face_folder,
    write_noise_pictures,
    write_pictures,
)

# Forms


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
    assert augmentation_for(config, loaded.image_shape) == Augmentation(1, flip=True)
    resized = load_dataset(config.model_copy(update={"image_size": 4}))
    assert resized.image_shape == (3, 4, 4)


def test_what_save_to_disk_wrote_is_read(tmp_path):
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": structs(), "label": [0, 1] * 6}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.select([3, 1, 2]).save_to_disk(tmp_path / "single")
    content = read(tmp_path / "single")
    assert content.parts["all"].targets.tolist() == [1, 1, 0]
    assert content.parts["all"].pictures.fetch(0, 1) == [png(PIXELS[3])]
    parts = datasets.DatasetDict({"train": table, "dev": table, "extra": table})
    parts.save_to_disk(tmp_path / "parts")
    content = read(tmp_path / "parts")
    assert origins(content) == {"train": "train", "test": "dev"}
    assert content.findings.parts_unused == ("extra",)
    with pytest.raises(DataError, match="no configurations, got 'x'"):
        read(tmp_path / "parts", config="x")
    (file,) = (tmp_path / "single").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match=r"single cannot be read .*: save the data set"):
        read(tmp_path / "single")


@pytest.mark.parametrize(
    "name",
    [
        "a.parquet",
        "a.arrow",
        "file.arrow",
        "a.jsonl",
        "a.json",
        "a.csv",
        "a.tsv",
        "semicolon.csv",
    ],
)
def test_a_table_file_is_a_data_set(tmp_path, name):
    path = tmp_path / name
    names = as_paths(tmp_path)
    rows = [
        {"file_name": n, "label": ["cat", "dog"][i % 2]} for i, n in enumerate(names)
    ]
    if path.suffix in {".parquet", ".arrow"}:
        write_table(path, **pa.Table.from_pylist(rows).to_pydict())
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        between = {"a.csv": ",", "a.tsv": "\t", "semicolon.csv": ";"}[name]
        lines = [between.join(row.values()) for row in rows]
        path.write_text("\n".join([f"file_name{between}label", *lines]))
    for place in (path, tmp_path):
        content = read(place)
        assert content.class_names == ["cat", "dog"]
        assert content.parts["all"].targets.tolist() == [0, 1] * 6
        assert content.parts["all"].pictures.fetch(2, 3) == [tmp_path / "02.png"]


def test_a_folder_of_pictures_is_read_as_imagefolder_does(tmp_path):
    folders = [
        f"{part}/{kind}" for part in ("train", "test") for kind in ("cat", "dog")
    ]
    names = [f"{folder}/{i}.png" for folder in folders for i in range(2)]
    write_pictures(tmp_path, names)
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    content = read(tmp_path)
    assert content.class_names == ["cat", "dog"]
    assert len(content.parts["test"].targets) == 4


def test_classes_that_are_numbers_are_no_names_of_pictures(tmp_path):
    names = [f"{i}.png" for i in range(4)]
    write_pictures(tmp_path / "train", names)
    lines = [f"{name},{i % 2}" for i, name in enumerate(names)]
    text = "\n".join(["file_name,label", *lines])
    (tmp_path / "train" / "metadata.csv").write_text(text)
    content = read(tmp_path)
    assert content.findings.columns == {"image": "file_name", "label": "label"}
    assert content.parts["all"].targets.tolist() == [0, 1, 0, 1]


def test_a_configuration_of_pictures_is_a_folder(tmp_path):
    write_pictures(tmp_path, [f"{v}/{k}/{v}.png" for v in ("a", "b") for k in "xy"])
    entry = "- config_name: {0}\n  data_dir: {0}\n"
    text = f"---\nconfigs:\n{entry.format('a')}{entry.format('b')}---\n"
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(DataError, match=r"a, b: set data\.config"):
        read(tmp_path)
    (picture, _) = read(tmp_path, config="b").parts["all"].pictures.fetch(0, 2)
    assert picture == tmp_path / "b" / "x" / "b.png"


def test_files_that_are_not_read_are_counted(tmp_path):
    write_rows(tmp_path / "train.parquet")
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    (tmp_path / "README.md").write_text("# A data set")
    write_pictures(tmp_path, ["shown/1.png", "shown/2.png"])
    write_rows(tmp_path / ".ipynb_checkpoints" / "train.parquet")
    content = read(tmp_path)
    assert len(content.parts["all"].targets) == ROWS
    entries = {entry.reason: entry for entry in content.findings.left_out}
    assert entries["tables beside the parquet files"].examples == ("train.csv",)
    assert entries["pictures beside the tables"].count == 2
    assert len(entries) == 3  # and hidden files


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"PAR1 and nothing else", r"train\.parquet cannot be read \("),
        (b"version https://git-lfs.github.com/spec/v1\n", r"pointer.*git lfs pull"),
    ],
)
def test_damaged_tables_are_named(tmp_path, content, match):
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(DataError, match=match):
        read(tmp_path)


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path):
    columns = [pa.array(structs()), pa.array([0, 1] * 6), pa.array([0, 1] * 6)]
    table = pa.Table.from_arrays(columns, names=["image", "label", "label"])
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match="several columns called label: rename"):
        read(tmp_path)


def test_a_table_that_is_damaged_further_behind_is_named(tmp_path, own_cache):
    write_rows(tmp_path / "train.parquet")
    content = bytearray((tmp_path / "train.parquet").read_bytes())
    content[10 : len(content) // 2] = bytes(len(content) // 2 - 10)
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.parquet cannot be read"):
        load_dataset(DataConfig(dataset=f"hf:{tmp_path}"))
    assert not list(own_cache.glob("datasets/*"))


def test_places_that_hold_no_data_set(tmp_path, own_cache):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither pictures nor table files"):
        read(tmp_path / "empty")
    for missing in (tmp_path / "none", "./none", "~/none/of/it", "a/b/c", "a.parquet"):
        with pytest.raises(DataError, match="no such folder or file"):
            read(missing)
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(DataError, match="is no table file"):
        read(tmp_path / "text.txt")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"archive: give imagefolder:.*webdataset:"):
        read(tmp_path / "a.zip")
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(DataError, match="neither a folder nor a regular file"):
        read(tmp_path / "pipe.parquet")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "train.parquet").symlink_to("nowhere")
    with pytest.raises(DataError, match="a link that leads nowhere"):
        read(tmp_path / "link")
    write_hugging_face_folder(tmp_path / "wide", size=(8, 12))
    with pytest.raises(DataError, match=r"set data\.image-size"):
        load_dataset(DataConfig(dataset=f"hf:{tmp_path / 'wide'}"))
    assert not list(own_cache.glob("datasets/*"))


def test_a_data_set_has_one_digest_wherever_it_lies(tmp_path, own_cache):
    digests = []
    for name in ("here", "there"):
        write_hugging_face_folder(tmp_path / name)
        config = DataConfig(dataset=f"hf:{tmp_path / name}")
        digests.append(load_dataset(config).digest)
    write_hugging_face_folder(tmp_path / "fewer", count=10)
    config = DataConfig(dataset=f"hf:{tmp_path / 'fewer'}")
    assert digests[0] == digests[1] != load_dataset(config).digest


def test_changed_files_and_settings_are_read_anew(tmp_path):
    write_rows(tmp_path / "train.parquet")

    def identity(**settings):
        config = DataConfig(dataset=f"hf:{tmp_path}", **settings)
        return open_hugging_face(str(tmp_path), config).identity

    names = ("train_part", "test_part", "image_column", "label_column", "config")
    identities = {identity(**{name: "x"}) for name in (*names, "client_column")}
    assert len(identities | {identity()}) == 7
    before = identity()
    write_rows(tmp_path / "train.parquet", labels=[1, 0])
    assert identity() != before


@pytest.mark.parametrize("place", ["set", "set/train.parquet"])
def test_changed_pictures_outside_of_the_folder_are_read_anew(tmp_path, place):
    folder = tmp_path / "pictures"
    write_noise_pictures(folder, ROWS)
    paths = [f"../pictures/{number:03}.png" for number in range(ROWS - 1)]
    paths.append(str(folder / f"{ROWS - 1:03}.png"))
    write_table(tmp_path / "set/train.parquet", image=paths, label=["a", "b"] * 6)

    def identity():
        return open_hugging_face(str(tmp_path / place), DataConfig()).identity

    before = identity()
    assert identity() == before
    (folder / "000.png").write_bytes(b"another content")
    assert identity() != before


def test_files_that_are_missing_are_warned_about(tmp_path):
    for number in (0, 2):
        write_rows(tmp_path / f"data/train-{number:05}-of-00004.parquet")
    write_rows(tmp_path / "data/test-00000-of-00001.parquet")
    (sentence,) = sentences(read(tmp_path))
    assert sentence.startswith("2 files of part train")
    assert "data/train-00001-of-00004, data/train-00003-of-00004" in sentence


def test_reading_a_folder_writes_into_no_cache(tmp_path, monkeypatch):
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    write_rows(tmp_path / "set" / "train.parquet")
    before = sorted(tmp_path.rglob("*"))
    content = read(tmp_path / "set")
    assert content.parts["all"].pictures.fetch(0, ROWS)
    assert sorted(tmp_path.rglob("*")) == before


# The hub


def test_a_set_on_the_hub_is_read_like_a_folder(tmp_path, monkeypatch):
    import huggingface_hub

    write_rows(tmp_path / "data" / "train-0.parquet")
    write_rows(tmp_path / "data" / "dev-0.parquet")
    names = ["README.md", "data/train-0.parquet", "data/dev-0.parquet", "movie.mp4"]
    siblings = [SimpleNamespace(rfilename=name) for name in names]
    patterns = []

    def snapshot(reference, *, repo_type, allow_patterns):
        assert (reference, repo_type) == ("somebody/set", "dataset")
        patterns.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "dataset_info",
        lambda self, reference, timeout: SimpleNamespace(siblings=siblings),
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    content = read("somebody/set")
    assert origins(content) == {"train": "train", "test": "dev"}
    assert set(patterns) == set(names[:3])


def test_a_hub_that_does_not_answer_is_given_up_soon(own_cache, monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(DataError, match="cannot load hf:nobody/nothing"):
        load_dataset(DataConfig(dataset="hf:nobody/nothing"))
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
