"""Pictures, labels and owners in the rows of tables."""

from __future__ import annotations

import io
from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from instahide_fl.config import DataConfig
from instahide_fl.data.datasets import load_dataset
from instahide_fl.errors import DataError
from tests.library.hugging_face_tables import (
    PIXELS,
    ROWS,
    as_paths,
    png,
    read,
    sentences,
    structs,
    write_rows,
    write_table,
)
from tests.library.pictures import write_hugging_face_folder

# Pictures


def pixels_of(stored):
    if isinstance(stored, np.ndarray):
        return stored
    file = io.BytesIO(stored) if isinstance(stored, bytes) else stored
    return np.asarray(Image.open(file))


STORED = {
    "struct": lambda folder: structs(),
    "struct with more fields": lambda folder: [
        {**value, "size": 8} for value in structs()
    ],
    "struct of paths": lambda folder: [
        {"bytes": None, "path": name} for name in as_paths(folder)
    ],
    "binary": lambda folder: [png(pixels) for pixels in PIXELS],
    "paths": as_paths,
    "height, width, colour": lambda folder: PIXELS.tolist(),
    "colour, height, width": lambda folder: PIXELS.transpose(0, 3, 1, 2).tolist(),
    "grey": lambda folder: PIXELS[..., 0].tolist(),
}


@pytest.mark.parametrize("kind", STORED)
def test_pictures_are_read_however_they_are_stored(tmp_path, own_cache, kind):
    pictures = STORED[kind](tmp_path)
    if isinstance(pictures[0], list):  # as Array2D and Array3D store them
        dtype = pa.uint8()
        for _ in range(np.ndim(pictures[0])):
            dtype = pa.list_(dtype)
        pictures = pa.array(pictures, dtype)
    write_table(tmp_path / "train.parquet", image=pictures, label=[0, 1] * 6)
    content = read(tmp_path)
    grey = kind == "grey"
    for start, stop in ((0, ROWS), (3, 4), (9, 11), (1, 7)):
        for row, stored in enumerate(
            content.parts["all"].pictures.fetch(start, stop), start
        ):
            if not isinstance(stored, np.ndarray):
                opened = Image.open(
                    io.BytesIO(stored) if isinstance(stored, bytes) else stored
                )
                stored = np.asarray(opened)
            assert np.array_equal(stored, PIXELS[row, ..., 0] if grey else PIXELS[row])
    loaded = load_dataset(DataConfig(dataset=f"hf:{tmp_path}"))
    assert loaded.image_shape == ((1 if grey else 3), 8, 8)


def test_array3d_of_the_datasets_library(tmp_path):
    import datasets

    features = datasets.Features(
        {"img": datasets.Array3D((8, 8, 3), "uint8"), "label": datasets.Value("int8")}
    )
    rows = {"img": PIXELS, "label": [0, 1] * 6}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    table.save_to_disk(tmp_path / "saved")
    for place in (tmp_path / "train.parquet", tmp_path / "saved"):
        pictures = read(place).parts["all"].pictures
        assert np.array_equal(np.stack(pictures.fetch(2, 9)), PIXELS[2:9])


@pytest.mark.parametrize(
    ("pictures", "match"),
    [
        ([None, *structs()[1:]], r"row 0 of .* \(train\) has no picture, 1 of 12"),
        ([*structs()[:9], *[{"bytes": None, "path": None}] * 3], "row 9 .* 3 of 12"),
        ([b"x"] * ROWS, r"bytes that are no picture file.*datasets\.Image\(\)"),
        (["http://cat.org/1.png"] * ROWS, "texts that are no files, as 'http"),
        ([structs(2)] * ROWS, "a list in each row"),
        ([[0] * 64] * ROWS, r"numbers of the shape \[64\].*datasets\.Array3D"),
        ([*PIXELS.tolist()[:11], [[[1, 2, 3]], [[4, 5, 6]] * 2]], r"row 11 .* no pict"),
    ],
)  # fmt: skip
def test_rows_without_a_picture_are_refused(tmp_path, own_cache, pictures, match):
    write_table(tmp_path / "train.parquet", image=pictures, label=[0, 1] * 6)
    with pytest.raises(DataError, match=match):
        load_dataset(DataConfig(dataset=f"hf:{tmp_path}"))


# Labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([3, 999, 20], ["3", "20", "999"]),
        ([-1, 1], ["-1", "1"]),
        (["dog", "cat ", " cat"], ["cat", "dog"]),
        ([True, False], ["False", "True"]),
        ([1.0, 0.0], ["0", "1"]),
        ([["b"], ["a"]], ["a", "b"]),
        (pa.array(["b", "a"] * 6).dictionary_encode(), ["a", "b"]),
    ],
)
def test_labels_of_any_type_become_classes(tmp_path, labels, names):
    if isinstance(labels, list):
        labels = [labels[i % len(labels)] for i in range(ROWS)]
    write_table(tmp_path / "train.parquet", image=structs(), label=labels)
    content = read(tmp_path)
    assert content.class_names == names
    values = labels if isinstance(labels, list) else labels.to_pylist()
    expected = [str(v[0] if isinstance(v, list) else v).strip() for v in values]
    taken = [names[target] for target in content.parts["all"].targets]
    assert taken == [text.removesuffix(".0") for text in expected]


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([None, 1], r"row 0 of .* \(train\) has no label, 6 of 12 .*: remove these"),
        ([0, -1, 1], "row 1 .* has no label, 4 of 12"),
        (["cat", " "], "row 1 .* has no label"),
        ([0.0, float("nan"), 1.0], "row 1 .* has no label, 4 of 12"),
        ([0.5, 1.0], r"with a point.*cast_column\('label', datasets\.Value\('int64'"),
        ([[0, 1], [1]], "row 0 .* has 2 labels; an image can have one class only"),
        (list(range(ROWS)), "12 different values in 12 rows"),
        (["cat"], "holds one class only, cat"),
        ([date(2020, 1, 1)], r"no class labels in label \(date32"),
        ([[[0]], [[1]]], r"no class labels in label \(list"),
    ],
)  # fmt: skip
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, match):
    write_rows(tmp_path / "train.parquet", labels, classes=None)
    with pytest.raises(DataError, match=match):
        read(tmp_path)


def test_declared_classes_without_images_are_warned_about(tmp_path):
    names = ["background", "cat", "dog", "bird"]
    write_rows(tmp_path / "train.parquet", labels=[1, 2], classes=names)
    write_rows(tmp_path / "test.parquet", labels=[1, 3], classes=names)
    content = read(tmp_path)
    assert content.class_names == names
    unused, untrained = sentences(content)
    assert unused.startswith("1 of 4 classes have no image: background")
    assert "test images and no training image: bird" in untrained
    write_rows(tmp_path / "train.parquet", labels=[1, -1], classes=names)
    with pytest.raises(DataError, match=r"row 1 .* has no label, 6 of 12"):
        read(tmp_path)
    write_rows(tmp_path / "train.parquet", labels=[1, 4], classes=names)
    with pytest.raises(DataError, match=r"row 1 .* holds 4, which is none of the 4"):
        read(tmp_path)


def test_classes_are_matched_by_name_between_files_and_parts(tmp_path):
    write_rows(tmp_path / "train-0.parquet", labels=[0, 1], classes=["cat", "dog"])
    write_rows(tmp_path / "train-1.parquet", labels=[0, 1], classes=["dog", "cat"])
    write_rows(tmp_path / "test.parquet", labels=[0, 0, 1], classes=["dog", "cat"])
    content = read(tmp_path)
    assert content.class_names == ["cat", "dog"]
    assert content.parts["train"].targets.tolist() == [0, 1] * 6 + [1, 0] * 6
    assert content.parts["test"].targets.tolist() == [1, 1, 0] * 4
    write_rows(tmp_path / "test.parquet", labels=["dog"], classes=None)
    assert read(tmp_path).parts["test"].targets.tolist() == [1] * ROWS
    write_rows(tmp_path / "test.parquet", classes=["cat", "horse"])
    with pytest.raises(DataError, match=r"\(train\) has not: horse, beside cat, dog"):
        read(tmp_path)


def test_values_of_the_test_part_that_are_unknown_are_refused(tmp_path):
    write_rows(tmp_path / "train.parquet", labels=["cat", "dog"], classes=None)
    write_rows(tmp_path / "test.parquet", labels=["cat", "Dog"], classes=None)
    with pytest.raises(DataError, match=r"\(test\) has classes that .* has not: Dog"):
        read(tmp_path)


def test_names_of_classes_that_are_alike_are_warned_about(tmp_path):
    write_rows(tmp_path / "train.parquet", labels=["cat", "Cat", "dog"], classes=None)
    content = read(tmp_path)
    assert content.class_names == ["Cat", "cat", "dog"]
    assert (
        "'Cat' and 'cat' are taken for different names: write" in sentences(content)[0]
    )


# Owners


def test_a_column_says_whose_each_image_is(tmp_path, own_cache):
    writers = ["w10", "w2", "w1"] * 4
    write_hugging_face_folder(tmp_path / "set", writer=writers)
    config = DataConfig(dataset=f"hf:{tmp_path / 'set'}", client_column="writer")
    for _ in ("decoded", "from the cache"):
        loaded = load_dataset(config)
        assert loaded.client_ids is not None
        assert loaded.client_ids.tolist() == [1, 2, 0] * 4
    few = load_dataset(config.model_copy(update={"train_rows": "0:2"}))
    assert few.client_ids is not None
    assert few.client_ids.tolist() == [0, 1]
    plain = load_dataset(config.model_copy(update={"client_column": ""}))
    assert plain.client_ids is None
    assert plain.digest != loaded.digest
    with pytest.raises(DataError, match="no column 'author', only img, label, writer"):
        load_dataset(config.model_copy(update={"client_column": "author"}))
    with pytest.raises(DataError, match=r"'img' .* holds no names or numbers"):
        load_dataset(config.model_copy(update={"client_column": "img"}))
    with pytest.raises(DataError, match=r"data\.client-column: only"):
        load_dataset(DataConfig(client_column="writer"))


@pytest.mark.parametrize(
    ("owners", "ids"),
    [
        ([7, 3], [1, 0]),
        ([0.5, -1.0], [1, 0]),
        ([True, False], [1, 0]),
        (["b", " a", "a "], [1, 0, 0]),
        ([date(2020, 2, 1), date(2020, 1, 1)], [1, 0]),
    ],
)
def test_owners_are_numbered_in_order(tmp_path, owners, ids):
    who = [owners[i % len(owners)] for i in range(ROWS)]
    write_rows(tmp_path / "train.parquet", who=who)
    content = read(tmp_path, client_column="who")
    numbers = content.parts["all"].client_ids
    assert numbers.tolist() == [ids[i % len(ids)] for i in range(ROWS)]
    assert content.findings.columns["client"] == "who"
    assert not content.findings.warnings


@pytest.mark.parametrize("missing", [None, float("nan"), "", " NaN"])
def test_rows_without_an_owner_are_refused(tmp_path, missing):
    owner = "a" if isinstance(missing, str) else 1.0
    write_rows(tmp_path / "train.parquet", who=[owner, missing] * 6)
    with pytest.raises(DataError, match=r"6 of 12 rows .* no 'who' .* first is row 1"):
        read(tmp_path, client_column="who")


def test_owners_whose_names_are_alike_are_warned_about(tmp_path):
    write_rows(tmp_path / "train.parquet", who=["a b", "A b", "c", "ab"] * 3)
    content = read(tmp_path, client_column="who")
    assert len(set(content.parts["all"].client_ids)) == 4
    (warning,) = sentences(content)
    assert "'A b' and 'a b' and 'ab' are taken for different names" in warning
