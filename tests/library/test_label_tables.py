"""Pictures whose labels stand in a table beside them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from instahide_fl.config import DataConfig
from instahide_fl.data.sources.find import find_source
from instahide_fl.errors import DataError
from tests.library.pictures import write_pictures


def read(path, **settings):
    return find_source(DataConfig(dataset=f"imagefolder:{path}", **settings)).read()


def labels_of(content):
    """Return for each part the label of each picture, by the picture's name."""
    return {
        part: {
            pictures.pictures.name(row): content.class_names[label]
            for row, label in enumerate(pictures.targets)
        }
        for part, pictures in content.parts.items()
    }


def write_set(folder, names, tables):
    write_pictures(folder, names)
    for name, text in tables.items():
        (folder / name).write_text(text)


NO_HEADER = "no-header.csv"
ANIMALS = {"1.png": "cat", "2.png": "dog", "3.png": "cat", "4.png": "dog"}


@pytest.mark.parametrize(
    ("folder", "name", "row"),
    [
        ("", "labels.csv", "{name},{label}"),
        ("images/", "labels.csv", "{name},{label}"),
        ("images/", "labels.csv", "images/{name},{label}"),
        ("set/images/", "set/train.csv", "{id};{label};{width}"),
        ("train/", "train.csv", "{id}\t{label}"),
        ("", NO_HEADER, "{name},{label}"),
        ("images/", NO_HEADER, "{id};{label}"),
        ("x/y/", "annotations.tsv", "/kaggle/input/y/{name}\t{label}"),
        ("", "anything.csv", "{row},{name},{label},7"),
        ("", "labels.csv", r".\{name},{label}"),
    ],
)
def test_a_table_of_paths_and_labels(tmp_path, folder, name, row):
    rows = [
        row.format(name=file, id=file[0], label=label, width=8, row=number)
        for number, (file, label) in enumerate(ANIMALS.items())
    ]
    header = row.format(name="file", id="id", label="breed", width="w", row="")
    lines = [header.replace(".\\", "").replace("images/", ""), *rows]
    text = "\n".join(rows if name == NO_HEADER else lines)
    write_set(tmp_path, [folder + file for file in ANIMALS], {name: text})
    content = read(tmp_path)
    expected = {folder + file: label for file, label in ANIMALS.items()}
    assert labels_of(content) == {"all": expected}
    assert content.findings.parts_from == {"all": name}
    assert not content.findings.left_out
    assert not content.findings.warnings


def test_metadata_as_hugging_face_writes_it(tmp_path):
    def line(name, label):
        return json.dumps({"file_name": name, "label": label}) + "\n"

    tables = {
        "train/metadata.jsonl": line("1.png", 10) + line("in/2.png", 9),
        "test/metadata.csv": "file_name,label\n1.png,10.0\n",
    }
    write_set(tmp_path, ["train/1.png", "train/in/2.png", "test/1.png"], tables)
    content = read(tmp_path)
    assert content.class_names == ["9", "10"]  # as numbers are ordered
    assert labels_of(content) == {
        "train": {"train/1.png": "10", "train/in/2.png": "9"},
        "test": {"test/1.png": "10"},
    }
    assert content.findings.columns == {"image": "file_name", "label": "label"}


def test_parts_by_a_column_by_folders_and_by_settings(tmp_path):
    text = (
        "file,label,split\n1.png,a,train\n2.png,b,train\n3.png,a,valid\n4.png,b,test\n"
    )
    write_set(tmp_path / "split", ANIMALS, {"labels.csv": text})
    content = read(tmp_path / "split")
    assert {part: len(p.targets) for part, p in content.parts.items()} == {
        "train": 2,
        "test": 1,
    }
    assert content.findings.parts_unused == ("valid",)
    content = read(tmp_path / "split", test_part="valid")
    assert labels_of(content)["test"] == {"3.png": "a"}
    names = ["train/1.png", "train/2.png", "val/3.png", "test/4.png"]
    text = "path,class\ntrain/1.png,a\ntrain/2.png,b\nval/3.png,b\n"
    write_set(tmp_path / "folders", names, {"all.csv": text})
    content = read(tmp_path / "folders")
    assert labels_of(content)["test"] == {"val/3.png": "b"}
    assert "test/ holds 1 image without labels" in str(content.findings.warnings[0])


def test_a_flat_test_part_is_labelled_by_a_table(tmp_path):
    names = ["Train/0/1.png", "Train/1/2.png", "Test/1.png", "Test/2.png"]
    text = "Width,ClassId,Path\n8,1,Test/1.png\n8,0,Test/2.png\n"
    write_set(tmp_path, names, {"Test.csv": text})
    content = read(tmp_path)
    assert labels_of(content)["test"] == {"1.png": "1", "2.png": "0"}
    assert not content.findings.left_out
    (tmp_path / "Test.csv").write_text(text.replace(",0,", ",5,"))
    with pytest.raises(DataError, match=r"has classes that Train/ has not: 5"):
        read(tmp_path)


def test_owners_are_read_from_a_column(tmp_path):
    text = "file,label,doctor\n1.png,a,Bo \n2.png,b,Al\n3.png,a,Bo\n4.png,b,al\n"
    write_set(tmp_path, ANIMALS, {"labels.csv": text})
    content = read(tmp_path, client_column="doctor")
    assert np.array_equal(content.parts["all"].client_ids, [1, 0, 1, 2])
    assert content.findings.columns["client"] == "doctor"
    assert "'Al' and 'al'" in str(content.findings.warnings[0])
    (tmp_path / "labels.csv").write_text(text.replace("Al", " "))
    with pytest.raises(DataError, match=r"1 of 4 training pictures have no 'doctor'"):
        read(tmp_path, client_column="doctor")
    with pytest.raises(DataError, match=r"no column 'ward'"):
        read(tmp_path, client_column="ward")


def test_rows_and_pictures_without_one_another_are_counted(tmp_path):
    names = [*(f"{number}.png" for number in range(28)), "test/28.png", "test/29.png"]
    rows = [f"{name},{'ab'[row % 2]}" for row, name in enumerate(names[:28])]
    rows += ["gone.png,a", rows[0], "test/28.png,", "test/29.png,NaN"]
    write_set(tmp_path, names, {"labels.csv": "\n".join(["file,label", *rows])})
    findings = read(tmp_path).findings
    assert {entry.reason: entry.count for entry in findings.left_out} == {
        "rows of labels.csv whose file is missing": 1,
        "rows of labels.csv without a label": 2,
        "rows of labels.csv that repeat a picture": 1,
    }
    assert len(findings.warnings) == 4
    assert "test/ holds 2 images without labels" in str(findings.warnings[0])


@pytest.mark.parametrize("missing", ["", "-1", "-1.0"])
def test_an_empty_label_and_minus_one_are_no_label(tmp_path, missing):
    names = [f"{number}.png" for number in range(6)]
    labels = ["0", "1", "0", "1", missing, missing]
    parts = ["train"] * 4 + ["test"] * 2

    def rows(*columns):
        return "\n".join(map(",".join, zip(*columns, strict=True)))

    divided = "file,label,split\n" + rows(names, labels, parts)
    write_set(tmp_path, names, {"labels.csv": divided})
    content = read(tmp_path)
    assert list(content.parts) == ["all"]
    assert content.class_names == ["0", "1"]
    assert "rows of labels.csv without a label are not used (2:" in str(
        content.findings.warnings[0]
    )
    (tmp_path / "labels.csv").write_text("file,label\n" + rows(names, labels))
    with pytest.raises(DataError, match=r"2 of 6 pictures in labels.csv .* 4\.png, 5"):
        read(tmp_path)


def test_minus_one_is_a_class_beside_one(tmp_path):
    rows = [f"{name},{(-1) ** row}" for row, name in enumerate(ANIMALS)]
    write_set(tmp_path, ANIMALS, {"labels.csv": "\n".join(["file,label", *rows])})
    assert read(tmp_path).class_names == ["-1", "1"]


def test_a_long_value_is_shortened_in_a_message(tmp_path):
    long_label = "iVBO" * 5_000
    names = [*(f"train/{name}" for name in ANIMALS), "test/5.png"]
    labels = ["a", "b", "a", "b", long_label]
    rows = map(",".join, zip(names, labels, strict=True))
    write_set(tmp_path, names, {"labels.csv": "\n".join(["file,label", *rows])})
    with pytest.raises(
        DataError, match=r"has not: [iVBO]{60}\.\.\.[iVBO]{37}: "
    ) as refusal:
        read(tmp_path)
    assert len(str(refusal.value)) < 300
    (tmp_path / "labels.csv").write_text(f"train/1.png,{long_label},8\ntrain/2.png,b,9")
    with pytest.raises(DataError, match="no column of it has a usual name") as refusal:
        read(tmp_path / "labels.csv")
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file,label\n", r"labels\.csv: it has no rows"),
        ("file,label\n8.png,a\n9.png,b\n", "no column of it names the pictures"),
        (
            "file,label\n1.png,a\n2.png,b\n3.png,a\n",
            "only 2 of 3 files .* 'file' exist",
        ),
        ("file,x,y z\n1.png,a,b\n2.png,b,a", r"usual name .* set data\.label-column"),
        ("file,label\n1.png,0.5\n2.png,0.7\n", "measurements"),
        ("file,label\n1.png,a\n2.png,a\n", "at least two classes .* name only a"),
        ("file,label\n1.png,a\n1.png,b\n2.png,b", "several labels"),
        (
            "file,breed,species\n1.png,a,x\n2.png,b,x\n",
            r"set data\.label-column to one",
        ),
        ("file,mask,label\n1.png,2.png,a\n2.png,1.png,b\n", ""),
        ("path,id,label\n1.png,2,a\n2.png,1,b\n", r"set data\.image-column to one"),
        (",,\n,,\n", "it has no rows"),
        ("no table", "no comma, semicolon or tab"),
    ],
)
def test_tables_that_are_not_certain_are_refused(tmp_path, text, match):
    write_set(tmp_path, ["images/1.png", "images/2.png"], {"labels.csv": text})
    if not match:
        assert read(tmp_path).findings.columns["image"] == "file"
        return
    with pytest.raises(DataError, match=match):
        read(tmp_path)
    with pytest.raises(DataError, match=match):
        read(tmp_path / "labels.csv")


def test_settings_and_the_name_of_a_table_settle_it(tmp_path):
    text = "path,id,grade,age\n1.png,2,a,1.5\n2.png,1,b,2.5\n"
    write_set(
        tmp_path, ANIMALS, {"x.csv": text, "y.csv": "f,label\n1.png,u\n2.png,v\n"}
    )
    content = read(tmp_path / "x.csv", image_column="path", label_column="grade")
    assert labels_of(content)["all"] == {"1.png": "a", "2.png": "b"}
    assert content.findings.columns_unused == ("id", "age")
    content = read(tmp_path / "y.csv")
    assert labels_of(content)["all"] == {"1.png": "u", "2.png": "v"}
    with pytest.raises(
        DataError, match=r"data\.label-column = 'no' is none of its col"
    ):
        read(tmp_path / "y.csv", label_column="no")


@pytest.mark.parametrize(
    ("labels", "classes", "num_warnings"),
    [
        (["12345678901234567890", "12345678901234567891", "7.0", "7"], None, 0),
        (["001", "002", "001", "002"], ["001", "002"], 0),
        (["001", "1", "2", "2"], ["001", "1", "2"], 1),
    ],
)
def test_classes_that_are_numbers(tmp_path, labels, classes, num_warnings):
    rows = [f"{name},{label}" for name, label in zip(ANIMALS, labels, strict=True)]
    write_set(tmp_path, ANIMALS, {"labels.csv": "\n".join(["file,label", *rows])})
    content = read(tmp_path)
    assert sorted(content.class_names) == (classes or sorted([*labels[:2], "7"]))
    assert len(content.findings.warnings) == num_warnings


@pytest.mark.parametrize(
    ("first_label", "match"),
    [
        ('["cat"]', ""),
        ('["cat", "dog"]', "no column of it has a usual name of labels"),
        ('{"boxes": [1, 2]}', "no column of it has a usual name of labels"),
        ("[" * 100_000, "it cannot be read"),
        ("9" * 5_000, "it cannot be read"),
    ],
)
def test_labels_in_json_that_are_no_single_value(tmp_path, first_label, match):
    rows = [f'{{"file": "{n}", "label": ["{kind}"]}}' for n, kind in ANIMALS.items()]
    text = "\n".join(rows).replace('["cat"]', first_label, 1)
    write_set(tmp_path, ANIMALS, {"metadata.jsonl": text})
    if match:
        with pytest.raises(DataError, match=match):
            read(tmp_path)
    else:
        assert labels_of(read(tmp_path))["all"] == ANIMALS


def test_a_form_to_fill_in_labels_nothing(tmp_path):
    train = "\n".join(["id,label", *(f"{n[0]},{k}" for n, k in ANIMALS.items())])
    form = "id,label\n5,cat\n6,cat"
    names = [*(f"train/{name}" for name in ANIMALS), "test/5.png", "test/6.png"]
    write_set(tmp_path, names, {"train.csv": train, "sampleSubmission.csv": form})
    content = read(tmp_path)
    assert list(content.parts) == ["all"]
    assert "test/ holds 2 images without labels" in str(content.findings.warnings[0])


def test_a_table_as_spreadsheets_save_unicode_text(tmp_path):
    write_set(tmp_path, ANIMALS, {})
    rows = [f"{name}\t{label}" for name, label in ANIMALS.items()]
    text = "\r\n".join(["file\tlabel", *rows])
    (tmp_path / "labels.txt").write_bytes(text.encode("utf-16"))
    assert labels_of(read(tmp_path))["all"] == ANIMALS


def test_a_table_against_class_folders_is_refused(tmp_path):
    names = ["00/1.png", "00/2.png", "01/3.png", "01/4.png"]
    write_set(tmp_path, names, {})
    table = tmp_path / "labels.csv"
    exchanged = ["01", "01", "00", "00"]
    for labels, is_same in ((exchanged, False), ("xxyy", True), ("xyxy", False)):
        rows = [f"{n},{label}" for n, label in zip(names, labels, strict=True)]
        table.write_text("\n".join(["file,label", *rows]))
        if is_same:
            assert read(tmp_path).class_names == ["00", "01"]
        else:
            with pytest.raises(DataError, match=r"other classes than their folders"):
                read(tmp_path)
            other = read(tmp_path, label_column="label").class_names
            assert other == sorted(set(labels))
    table.unlink()
    with pytest.raises(DataError, match=r"no table of labels"):
        read(tmp_path, label_column="label")
