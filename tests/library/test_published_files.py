"""What is published says nothing of the machine, and what is hidden is unreadable."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
from PIL import Image

from instahide_fl.config import Config
from instahide_fl.engine.inline import run_inline
from instahide_fl.report.without_folders import (
    setting_without_folders,
    without_folders,
)
from instahide_fl.run_folder import PROVENANCE, RunFolder

USER = "jane.doe"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A recorded run below the home of a user, under an open umask."""
    home = tmp_path_factory.mktemp("home") / USER / "my work"
    noise = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        folder = home / "x-rays" / ("train", "test")[number % 2] / f"c{number // 2 % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    values = {
        "data.dataset": f"imagefolder:{home / 'x-rays'}",
        "instahide.method": "none",
        "partition.num-clients": 2,
        "partition.min-size": 1,
        "train.rounds": 1,
        "train.batch-size": 1,
        "model.name": "mlp",
        "record.rounds": "all",
        "record.truth": True,
        "output.folder": str(home / "run"),
    }
    config = Config().with_values(values)
    before = os.umask(0)
    try:
        folder = RunFolder.create(home / "run", config)
        run_inline(config, folder)
    finally:
        os.umask(before)
    return folder


def test_truth_and_transcripts_are_for_their_owner_alone(run):
    hidden = [
        path
        for name in ("transcript", "truth", "exposures")
        for path in (run.path / name, *(run.path / name).rglob("*"))
    ]
    assert len(hidden) > 6
    for path in hidden:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_reports_tables_and_transcripts_name_no_user_and_no_folder(run, command):
    provenance = run.read_json(PROVENANCE)
    line = f"instahide-fl run --set 'data.dataset=imagefolder:{run.path.parent}/x-rays'"
    run.write_json(PROVENANCE, {**provenance, "command": line})
    attack = ("--attack", "first_layer")
    for arguments in (("attack", run.path, *attack), ("report", run.path)):
        code, _, errors = command(*arguments)
        assert code == 0, errors
    published = [
        run.path / "report.html",
        *run.path.glob("transcript/*"),
        *run.path.glob("attacks/*.json"),
    ]
    assert len(published) == 3
    for path in published:
        assert USER.encode() not in path.read_bytes(), path
    pictures = [*run.path.glob("attacks/*.png"), *run.path.glob("attacks/*.npz")]
    assert pictures
    for path in pictures:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    page = (run.path / "report.html").read_text()
    assert "imagefolder:x-rays" in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no pool at /home/jane/pool (a folder)", "no pool at pool (a folder)"),
        ("hf:/srv/data/cifar10, k=4", "hf:cifar10, k=4"),
        ("--set 'pool.source=/home/Jane Doe/p' -x", "--set 'pool.source=p' -x"),
        ("cannot read '/home/Jane Doe/p': no", "cannot read 'p': no"),
        ("~/data/x; ~/y/", "x; y"),
        ("file:///home/jane/runs", "runs"),
        ("no data at //home//jane/x or ~jane/pool", "no data at x or pool"),
        ("--set 'track.uri=http://host/x'", "--set 'track.uri=http://host/x'"),
        ("http://host:80/path 1/2 and/or km/h", "http://host:80/path 1/2 and/or km/h"),
        ("a / b, 5 %", "a / b, 5 %"),
    ],
)
def test_paths_are_shortened_and_nothing_else(text, expected):
    assert without_folders(text) == expected


def test_the_value_of_a_setting_may_have_spaces():
    assert setting_without_folders("hf:/home/Jane Doe/x y") == "hf:x y"
    assert setting_without_folders("mnist-5k") == "mnist-5k"
    assert setting_without_folders("http://host:5000") == "http://host:5000"
    assert setting_without_folders("0:100") == "0:100"
