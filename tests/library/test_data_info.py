"""What people, programs, run folders and reports are told about a data set."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instahide_fl.config import Config
from instahide_fl.data.data_report import (
    DataReport,
    DataWarning,
    LeftOut,
    PixelFindings,
    SourceFindings,
)
from instahide_fl.data.report_text import (
    class_facts,
    data_facts,
    data_summary,
    warning_lines,
)
from instahide_fl.deployment.client_data import client_config
from instahide_fl.deployment.policy import ClientPolicy
from instahide_fl.errors import StudyError
from instahide_fl.report.reports import write_report
from instahide_fl.terminal import printable

WARNING = (
    "warning: 1 of 4 test images is a training image too: set data.drop-duplicates"
)
SMALL_RUN = (
    *("--engine", "inline", "--set", "train.rounds=1", "--set", "model.name=mlp"),
    *("--set", "partition.num-clients=2", "--set", "partition.min-size=1"),
    *("--set", "instahide.method=none"),
)
REPORT = DataReport(
    dataset="hf:x-rays",
    parts={"train": 1200, "test": 300},
    classes={"healthy": 1000, "ill": 500},
    channels=1,
    height=32,
    width=32,
    levels=250,
    duplicates=7,
    duplicates_across_parts=2,
    one_colour=1,
    source=SourceFindings(
        parts_from={"train": "part training", "test": "part dev"},
        parts_unused=("extra",),
        columns={"image": "scan", "label": "finding"},
        columns_unused=("age", "sex"),
        left_out=(
            LeftOut.of("hidden files", [".a", ".b", ".c", ".d"]),
            LeftOut.of("rows without a picture", ["row 0"]),
        ),
    ),
    pixels=PixelFindings(
        channels=1,
        channels_reason="no picture is coloured",
        stored_as={"16-bit grey": 1499, "8-bit grey": 1},
        value_range=(0.0, 4095.0),
        value_range_reason="12 bits in all pictures",
        clipped_share=0.0125,
        sizes="all 32x32",
    ),
    warnings=(DataWarning("a \x1b[31mproblem", "change data.channels"),),
)


@pytest.fixture
def pictures(tmp_path, own_cache):
    """Two classes in two parts, with one picture that is in both parts."""
    rng = np.random.default_rng(0)
    names = [f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(8)]
    names += [f"test/{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]
    for name in names:
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    copied = tmp_path / "pets/train/dog/0.png"
    (tmp_path / "pets/test/dog/0.png").write_bytes(copied.read_bytes())
    return f"imagefolder:{tmp_path / 'pets'}"


def test_all_facts_are_in_words():
    facts = data_facts(REPORT)
    assert ("training images", "1,200 (part training)") in facts
    assert ("test images", "300 (part dev)") in facts
    assert ("parts not used", "extra") in facts
    assert ("columns", "image from scan, label from finding") in facts
    assert ("columns not used", "age, sex") in facts
    assert ("stored as", "1,499 16-bit grey, 1 8-bit grey") in facts
    mapping = dict(facts)["value range"]
    assert mapping.startswith("0 becomes 0, 4095 becomes 255: 12 bits in all pictures")
    assert "1.25% of the values" in mapping
    assert ("left out", "4: hidden files (.a, .b, .c, ...)") in facts
    assert ("", "1: rows without a picture (row 0)") in facts
    equal = "7 images equal an earlier one; 2 of the test images are training images"
    assert dict(facts)["duplicates"].startswith(equal)
    assert warning_lines(REPORT) == [
        r"warning: a \x1b[31mproblem: change data.channels"
    ]


def test_a_summary_names_what_is_not_as_expected():
    first, origin, left_out, copies = data_summary(REPORT)
    assert first == (
        "hf:x-rays: 1,200 training and 300 test images of 2 classes, 1x32x32, "
        "1,499 16-bit grey, 1 8-bit grey"
    )
    assert "train: part training" in origin
    assert "label from finding" in origin
    assert left_out == "  left out: hidden files (4), rows without a picture (1)"
    assert "1 image of a single colour" in copies


def test_many_classes_are_summed_up():
    names = [f"class {number}" for number in range(30)]
    (_, listed), (_, spread) = class_facts(names, [3] * 29 + [5])
    assert listed == "30: class 0, class 1, class 2, ..., class 29"
    assert spread == "3 (class 0) to 5 (class 29), mean 3.1"


def test_names_are_safe_to_print():
    assert printable("caf\udce9 \x1b[2J\n\u202e") == r"caf\udce9 \x1b[2J\n\u202e"
    assert printable("größe [red] 猫") == "größe [red] 猫"


def test_data_info_prints_what_was_read_and_ends_with_the_warnings(command, pictures):
    code, out, err = command("data", "info", pictures)
    assert (code, err) == (0, "")
    assert "training images  16" in out
    assert "image            3x8x8 (C x H x W), uint8" in out
    assert "left out         nothing" in out
    assert "1 image equal an earlier one" not in out
    assert "1 image equals an earlier one; 1 of the test images is a training" in out
    assert "channel mean" in out
    assert out.splitlines()[-1].startswith(WARNING)
    assert "2,000" not in out


def test_json_alone_is_on_standard_output(command, pictures):
    code, out, err = command("data", "info", pictures, "--json", "--picture", "p.png")
    report = json.loads(out)
    assert code == 0
    assert report["parts"] == {"train": 16, "test": 4}
    assert report["classes"] == {"cat": 10, "dog": 10}
    shape = [report[key] for key in ("channels", "height", "width")]
    assert shape == [3, 8, 8]
    assert (report["duplicates"], report["left_out"]) == (1, 0)
    assert report["levels"] > 200
    [warning] = report["warnings"]
    assert f"warning: {warning}".startswith(WARNING)
    assert report["name"] == pictures
    assert len(report["statistics"]["mean"]) == 3
    assert "picture: p.png" in err
    assert Path("p.png").stat().st_size > 0


def test_a_run_prints_the_report_once_and_writes_it_resumed_or_not(command, pictures):
    code, out, err = command(
        "run", "--set", f"data.dataset={pictures}", *SMALL_RUN, "--out", "run"
    )
    assert code == 0, err
    assert out.count("16 training and 4 test images of 2 classes, 3x8x8") == 1
    assert err.count(WARNING) == 1
    report = json.loads(Path("run/data-report.json").read_text())
    assert report == json.loads(json.dumps(DataReport.from_json(report).to_json()))
    assert report["parts"] == {"train": 16, "test": 4}

    page = write_report([Path("run")], None).read_text()
    section = page.partition('<section id="data">')[2].partition("</section>")[0]
    assert "1 image equals an earlier one" in section
    assert WARNING in section
    assert page.index('id="data"') < page.index('id="methods"')
    Path("run/data-report.json").unlink()  # as in runs of earlier versions
    assert 'id="data"' not in write_report([Path("run")], None).read_text()

    Path("run/summary.json").unlink()  # as if it had been interrupted at the end
    code, _, err = command("run", "--resume", "run", "--engine", "inline")
    assert (code, err.count(WARNING)) == (0, 1)
    assert json.loads(Path("run/data-report.json").read_text()) == report


@pytest.mark.parametrize(
    "words",
    [
        ("encode", "{data}", "--out", "encodings.npz", "--set", "pool.source=photos"),
        ("data", "partition", "{data}", "--set", "partition.num-clients=2"),
        ("challenge", "make", "--dataset", "{data}", "--out", "c", "--images", "4"),
    ],
    ids=["encode", "partition", "challenge"],
)
def test_other_commands_begin_with_the_summary(command, pictures, words):
    extra = ["--set", "partition.min-size=1"] if "partition" in words else []
    code, out, err = command(*(word.format(data=pictures) for word in words), *extra)
    assert code == 0, err
    assert out.lstrip().startswith(f"{pictures}: 16 training and 4 test images")
    assert err.count(WARNING) == 1


def test_a_study_prints_each_data_set_once(command, pictures, monkeypatch):
    Path("study.toml").write_text(
        f'title = "Two data sets"\nseeds = [0, 1]\n'
        f'[axes]\n"data.dataset" = ["{pictures}", "mnist-5k", "hf:absent"]\n'
        f'[[methods]]\nname = "plain"\nsettings.instahide.method = "none"\n'
        f'[[methods]]\nname = "cropped"\nsettings.data.augment = "crop"\n'
    )
    started = []

    def start_nothing(work, runs, jobs):
        started.extend(runs)
        if started:
            raise StudyError("no run is started in this test")

    # The package's attribute of this name is the command. There are no trials.
    module = importlib.import_module("instahide_fl.cli.compare")
    monkeypatch.setattr(module, "_carry_out", start_nothing)
    code, out, err = command("compare", "study.toml")
    assert code == 1
    assert len(started) == 12
    assert out.count("16 training and 4 test images") == 1
    assert out.count("mnist-5k: 4,000 training and 1,000 test images") == 1
    assert err.count(WARNING) == 1
    assert "Traceback" not in err


def test_names_that_act_on_a_terminal_are_printed_as_escapes(
    command, pictures, tmp_path
):
    for part in ("train", "test"):
        folder = tmp_path / "pets" / part
        (folder / "cat").rename(folder / "[red]c\x1b[31mt")
    for words in (("info",), ("partition", "--set", "partition.min-size=1")):
        code, out, err = command("data", words[0], pictures, *words[1:])
        assert code == 0, err
        assert "\x1b" not in out + err
        assert words[0] != "info" or r"[red]c\x1b[31mt" in out
    code, out, _ = command("data", "info", pictures, "--json")
    assert (code, "\x1b" in out) == (0, False)
    assert "[red]c\x1b[31mt" in json.loads(out)["classes"]


@pytest.mark.parametrize(
    "dataset",
    [
        "imagefolder:/caf\udce9\x1b[31m",
        "imagefolder:a\0b",
        "hf:a\0b",
        "webdataset:\udce9",
        f"imagefolder:{'a' * 5000}",
        f"hf:{'a' * 5000}",
        f"webdataset:{'a' * 5000}",
    ],
    ids=lambda name: ascii(name)[:20],
)
def test_an_odd_data_set_name_gives_one_sentence(command, own_cache, dataset):
    code, out, err = command("data", "info", dataset)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err


def test_a_class_whose_name_is_no_text_gives_one_sentence(command, pictures, tmp_path):
    folder = os.fsencode(tmp_path / "pets" / "train")
    os.rename(folder + b"/cat", folder + b"/c\xe9t")
    code, out, err = command("data", "info", pictures)
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_a_server_does_not_choose_what_a_client_reads(tmp_path):
    server = {
        "data.train-part": "secret",
        "data.test-part": "secret",
        "data.image-column": "face",
        "data.label-column": "name",
        "data.config": "secret",
        "data.drop-duplicates": True,
        "data.channels": 3,
        "data.value-range": "0:4095",
        "data.image-size": 16,
    }
    policy = ClientPolicy(
        name="north",
        server="localhost:9443",
        data="hf:scans",
        image_column="scan",
        config="own",
    )
    data = client_config(policy, tmp_path, Config().with_values(server)).data
    assert (data.train_part, data.test_part, data.label_column) == ("", "", "")
    assert (data.image_column, data.config) == ("scan", "own")
    assert not data.drop_duplicates
    assert (data.channels, data.value_range, data.image_size) == (3, "0:4095", 16)
