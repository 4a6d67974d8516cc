from __future__ import annotations

import pytest

from instahide_fl.data.sources.hugging_face.part_files import part_of_file
from instahide_fl.errors import DataError
from tests.library.hugging_face_tables import (
    PIXELS,
    ROWS,
    origins,
    parts_from,
    png,
    read,
    sentences,
    structs,
    write_rows,
    write_table,
)

# Parts


@pytest.mark.parametrize(
    ("files", "used", "unused"),
    [
        ("data/train-0 data/Test-0", {"train": "train", "test": "Test"}, ()),
        ("train testing", {"train": "train", "test": "testing"}, ()),
        ("data/train-0 data/dev-0", {"train": "train", "test": "dev"}, ()),
        ("Training/0 eval/0", {"train": "Training", "test": "eval"}, ()),
        ("train/0 train/1 valid/0", {"train": "train", "test": "valid"}, ()),
        ("train-00000-of-00002-0a1b2c3d val-0", {"train": "train", "test": "val"}, ()),
        ("train test_a val", {"train": "train", "test": "test_a"}, ("val",)),
        ("train extra", {"all": "train"}, ("extra",)),
        ("plain/train/0000 plain/test/0000", {"train": "train", "test": "test"}, ()),
    ],
)  # fmt: skip
def test_parts_are_recognised_by_the_names_of_files(tmp_path, files, used, unused):
    for name in files.split():
        write_rows(tmp_path / f"{name}.parquet")
    content = read(tmp_path)
    assert origins(content) == used
    assert content.findings.parts_unused == unused
    num_train = sum("rain" in name for name in files.split())
    assert len(next(iter(content.parts.values())).targets) == ROWS * num_train


def test_files_that_are_named_like_no_part_are_one_table(tmp_path):
    for name in ("north", "south"):
        write_rows(tmp_path / f"{name}.parquet")
    content = read(tmp_path)
    assert parts_from(content) == {"all": "north.parquet and 1 more"}
    assert len(content.parts["all"].targets) == 2 * ROWS
    assert part_of_file("animals_test-00001-of-00003.parquet") == "animals_test"


def test_settings_name_the_parts(tmp_path):
    for name in ("train", "test", "holdout"):
        write_rows(tmp_path / f"{name}.parquet")
    content = read(tmp_path, train_part="test", test_part="holdout")
    assert origins(content) == {"train": "test", "test": "holdout"}
    assert content.findings.parts_unused == ("train",)
    with pytest.raises(DataError, match=r"data\.test-part: 'tset' is no part"):
        read(tmp_path, test_part="tset")
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(DataError, match=r"holdout, test: set data\.train-part"):
        read(tmp_path)


README = """---
configs:
- config_name: small
  data_files:
  - split: train
    path: s/a-*.parquet
  - split: dev
    path: [s/b.parquet]
- config_name: large
  data_dir: large
dataset_info:
- config_name: small
  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': cat
          '1': dog
---
"""


def test_readme_declares_configurations_parts_and_names(tmp_path):
    (tmp_path / "README.md").write_text(README)
    for name in ("s/a-1", "s/b", "large/train-0", "large/test-0"):
        write_rows(tmp_path / f"{name}.parquet", classes=None)
    with pytest.raises(DataError, match=r"small, large: set data\.config to one"):
        read(tmp_path)
    small = read(tmp_path, config="small")
    assert parts_from(small) == {
        "train": "part train (s/a-1.parquet)",
        "test": "part dev (s/b.parquet)",
    }
    assert small.class_names == ["cat", "dog"]
    assert read(tmp_path, config="large").class_names == ["0", "1"]
    with pytest.raises(DataError, match=r"no configuration 'tiny', only small, large"):
        read(tmp_path, config="tiny")
    text = README.replace("config_name: small", "config_name: default")
    (tmp_path / "README.md").write_text(text)
    assert read(tmp_path).class_names == ["cat", "dog"]
    (tmp_path / "s/b.parquet").unlink()
    with pytest.raises(DataError, match="that do not exist for dev: download"):
        read(tmp_path)
    (tmp_path / "README.md").write_text("---\nconfigs: 3\n---\n")
    with pytest.raises(DataError, match=r"README\.md cannot be read"):
        read(tmp_path)


def test_folders_with_the_same_parts_are_configurations(tmp_path):
    for name in ("en/train", "en/test", "fr/train", "fr/test"):
        write_rows(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"en, fr: set data\.config"):
        read(tmp_path)
    content = read(tmp_path, config="fr")
    assert parts_from(content)["test"] == "part test (fr/test.parquet)"


@pytest.mark.parametrize("label", [-1, None])
def test_an_unlabelled_test_part_is_passed_over(tmp_path, label):
    write_rows(tmp_path / "train.parquet")
    write_rows(tmp_path / "test.parquet", labels=[label])
    content = read(tmp_path)
    assert origins(content) == {"all": "train"}
    assert content.findings.parts_unused == ("test",)
    (warning,) = sentences(content)
    assert "test has no labels and is not used, a fifth of" in warning
    write_rows(tmp_path / "validation.parquet")
    content = read(tmp_path)
    assert origins(content) == {"train": "train", "test": "validation"}
    (warning,) = sentences(content)
    assert "the part validation is used to test on: set data.test-part" in warning
    with pytest.raises(DataError, match=r"row 0 of .* \(test\) has no label, 12 of 12"):
        read(tmp_path, test_part="test")
    write_rows(tmp_path / "test.parquet", labels=[0, label])
    with pytest.raises(DataError, match=r"row 1 of .* \(test\) has no label, 6 of 12"):
        read(tmp_path)


def test_a_test_part_without_a_label_column_is_unlabelled(tmp_path):
    write_rows(tmp_path / "train.parquet")
    write_table(tmp_path / "test.parquet", image=structs())
    content = read(tmp_path)
    assert origins(content) == {"all": "train"}
    assert "test has no labels" in sentences(content)[0]


# Columns


@pytest.mark.parametrize(
    ("columns", "taken", "unused"),
    [
        ("image label", "image label", ""),
        ("Img Target", "Img Target", ""),
        ("mask image label", "image label", "mask"),
        ("scan kind", "scan kind", ""),
        ("img coarse_label fine_label", "img fine_label", "coarse_label"),
        ("image labels sex", "image labels", "sex"),
        ("picture category __index_level_0__", "picture category", ""),
    ],
)
def test_columns_with_usual_names_are_taken(tmp_path, columns, taken, unused):
    pictures = {"mask", "scan", "picture", "image", "Img", "img"}
    values = {
        name: structs() if name in pictures else [0, 1] * 6 for name in columns.split()
    }
    write_table(tmp_path / "train.parquet", **values)
    findings = read(tmp_path).findings
    image, label = taken.split()
    assert findings.columns == {"image": image, "label": label}
    assert findings.columns_unused == tuple(unused.split())


def test_columns_that_are_not_certain_are_refused_until_set(tmp_path):
    halves, thirds = [0, 1] * 6, [0, 1, 2] * 4
    pictures = {"left": structs(), "right": structs()[::-1]}
    write_table(tmp_path / "a.parquet", **pictures, sex=halves, diagnosis=thirds)
    with pytest.raises(DataError, match=r"left, right: set data\.image-column"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"sex, diagnosis: set data\.label-column"):
        read(tmp_path, image_column="left")
    content = read(tmp_path, image_column="right", label_column="diagnosis")
    assert content.class_names == ["0", "1", "2"]
    assert content.parts["all"].pictures.fetch(0, 1) == [png(PIXELS[-1])]
    assert content.findings.columns_unused == ("left", "sex")
    owned = read(tmp_path, image_column="left", client_column="sex")
    assert owned.findings.columns["label"] == "diagnosis"
    with pytest.raises(DataError, match="no column 'lfet', choose of left, right, sex"):
        read(tmp_path, image_column="lfet")
    with pytest.raises(DataError, match=r"no class labels in left \(struct"):
        read(tmp_path, image_column="right", label_column="left")


def test_a_usual_name_whose_column_cannot_be_used_is_refused(tmp_path):
    write_table(
        tmp_path / "a.parquet", image=[b"x"] * ROWS, mask=structs(), label=[0, 1] * 6
    )
    with pytest.raises(DataError, match=r"image \(bytes that are no picture file\)"):
        read(tmp_path)
    assert read(tmp_path, image_column="mask").findings.columns["image"] == "mask"
