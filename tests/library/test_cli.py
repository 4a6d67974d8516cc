"""The command line as a user types it: exit codes, one line of reason, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

from instahide_fl import __version__
from instahide_fl.cli.run import ENGINE_NAMES
from instahide_fl.config import Config
from instahide_fl.data.pool import MixingPool
from instahide_fl.engine.run import ENGINES
from instahide_fl.files import sole_writer
from instahide_fl.run_folder import PROVENANCE, RunFolder

SINGLE = [  # images, in the last batch of each client
    *("--set", "data.image-size=8", "--set", "model.name=strided-cnn"),
    *("--set", "model.normalization=batch", "--set", "train.mode=update"),
    *("--set", "train.batch-size=57"),
]
QUICK = ["--engine", "inline", "--set", "train.rounds=2", "--set", "model.width=4"]


def test_run_then_the_folder_cannot_be_overwritten(command):
    code, out, _ = command("run", *QUICK, "--out", "first")
    assert code == 0
    assert "accuracy" in out
    assert "run folder: first" in out
    code, _, err = command("run", *QUICK, "--out", "first")
    assert code == 2
    assert "first exists already" in err
    code, _, err = command("run", "--resume", "first")
    assert (code, "is finished" in err) == (2, True)


def test_programs_read_json_and_the_quiet_read_nothing(command):
    code, out, _ = command("run", *QUICK, "--out", "first", "--json")
    result = json.loads(out)
    assert (code, result["rounds"]) == (0, 2)
    assert Path(result["folder"]) == Path("first").absolute()
    code, out, _ = command("evaluate", "first", "--json")
    assert json.loads(out)["clean"]["accuracy"] == result["final_accuracy"]
    assert command("evaluate", "first", "--quiet")[:2] == (0, "")
    # What was asked of one command does not hold for the next.
    assert "clean images" in command("evaluate", "first")[1]
    code, out, _ = command("data", "partition", "--json")
    clients = json.loads(out)["clients"]
    assert sum(sum(counts) for counts in clients.values()) == 4000
    code, out, err = command("evaluate", "nowhere", "--json")
    assert (code, out) == (2, "")
    assert "nowhere" in err


def test_it_says_its_version_and_which_engines_there_are(command):
    assert command("--version")[:2] == (0, f"instahide-fl {__version__}\n")
    assert "Usage" in command("run", "-h")[1]
    assert tuple(sorted(ENGINES, key=ENGINE_NAMES.index)) == ENGINE_NAMES
    module = [sys.executable, "-m", "instahide_fl", "--version"]
    shown = subprocess.run(module, capture_output=True, text=True, check=True).stdout
    assert shown == f"instahide-fl {__version__}\n"


def test_one_process_at_a_time_writes_in_a_folder(command, tmp_path):
    config = Config().with_values({"train.rounds": 2, "model.width": 4})
    run = RunFolder.create(tmp_path / "run", config)
    with sole_writer(run.path):
        code, _, err = command("run", "--engine", "inline", "--resume", run.path)
    assert (code, "another process is writing in" in err) == (2, True)
    assert not (run.path / "provenance.json").exists()
    assert command("run", "--engine", "inline", "--resume", run.path)[0] == 0


def test_a_run_is_continued_on_its_own_engine(command, tmp_path):
    config = Config().with_values({"train.rounds": 1, "model.width": 4})
    run = RunFolder.create(tmp_path / "run", config)
    run.write_json(PROVENANCE, {"engine": "ray", "resumed": [{"engine": "inline"}]})
    assert command("run", "--resume", run.path)[0] == 0
    last = run.read_json(PROVENANCE)["resumed"][-1]
    assert last["engine"] == "inline"
    deployed = RunFolder.create(tmp_path / "deployed", config)
    deployed.write_json(PROVENANCE, {"engine": "deployment"})
    code, _, err = command("run", "--resume", deployed.path)
    assert (code, "deploy run --resume" in err) == (2, True)


def test_default_folders_are_numbered_and_a_settings_file_works(command):
    Path("my.toml").write_text("seed = 4\n[train]\nrounds = 1\nbatch-size = 4\n")
    for expected in ("mnist-5k-instahide", "mnist-5k-instahide-2"):
        code, out, _ = command("run", "my.toml", "--engine", "inline")
        assert code == 0
        assert f"runs/{expected}" in out.replace("\n", "")
    assert "seed = 4" in Path("runs/mnist-5k-instahide/config.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "train.round=5"], "did you mean train.rounds"),
        (["--set", "train.rounds=many"], "train.rounds must be a valid integer"),
        (["--set", "train.rounds=0"], "greater than or equal to 1, got 0"),
        (["--set", "instahide.max-coefficient=0.2"], "must exceed 1/num-mixed"),
        (["--set", "instahide.num-mixed=40"], "accept only 0.0000%"),
        (
            ["--set", "instahide.scope=inside", "--set", "instahide.num-mixed=401"],
            "a client has only 400",
        ),
        (["--set", "partition.num-clients=4001"], "must be in 1..4000"),
        (["--set", "partition.num-clients=0"], "at least 1 here"),
        (["--set", "pool.source=nowhere"], "/nowhere (a folder with manifest.json"),
        (["--set", "pool.source=small"], "needs 2 distinct public images"),
        (["--set", "pool.source=colour"], "3x28x28"),
        (["--set", "pool.source=corrupt"], "copy or build it again"),
        (["--set", "data.dataset=cifar11"], "must be mnist-5k, hf:"),
        (["--set", "data.dataset=hf:/nowhere/at-all"], "no such folder or file"),
        (["--set", "data.image-size=2"], "at least 4x4"),
        (["--set", "resources.gpus-per-client=1.0"], "no usable GPU"),
        (["--engine", "warp"], "must be one of ray, flower, inline"),
        (["missing.toml"], "cannot read the settings file"),
        (["--resume", "nothing"], "not a run folder"),
        (["--out", "file/below"], "cannot write file/below"),
        (SINGLE, 'set model.normalization = "group"'),
    ],
)
def test_a_users_mistake_ends_with_2_and_one_reason(command, arguments, expected):
    if "gpus" in arguments[-1] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    images = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
    images[0, 0, 0] = 7
    MixingPool.from_images(images[:1]).save(Path("small"))
    MixingPool.from_images(images).save(Path("corrupt"))
    MixingPool.from_images(images.expand(-1, 3, -1, -1).contiguous()).save(
        Path("colour")
    )
    data = bytearray(Path("corrupt/images.npy").read_bytes())
    data[-1] ^= 1
    Path("corrupt/images.npy").write_bytes(data)
    Path("file").write_text("")
    code, _, err = command("run", *arguments)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2
    assert not Path("runs").exists(), "a half-written run folder was left behind"


def test_data_and_pool_commands(command, pool):
    code, out, _ = command("data", "info", "mnist-5k")
    assert code == 0
    assert "4,000" in out
    pool.save(Path("pool"))
    code, out, _ = command("pool", "info", "pool")
    assert code == 0
    assert pool.sha256 in out
    assert command("pool", "verify", "pool")[0] == 0
    assert command("pool", "verify", "elsewhere")[0] == 2


def test_a_partition_can_be_looked_at_before_a_run(command):
    arguments = ["data", "partition", "mnist-5k", "--picture", "p.png"]
    chosen = ["--set", "partition.scheme=classes", "--set", "partition.num-clients=20"]
    code, out, _ = command(*arguments, *chosen)
    assert code == 0
    assert "clients          20" in out
    assert "classes a client 2 to 2, median 2" in out
    assert Path("p.png").stat().st_size > 1000
    code, _, err = command(*arguments)
    assert (code, "exists already" in err) == (2, True)
    code, _, err = command(*arguments[:3], "--set", "partition.num-clients=0")
    assert (code, "must be in 1..4000" in err) == (2, True)


def test_the_plan_of_a_study_names_the_method_out_of_reach(command):
    base = {"train": {"rounds": 2}, "server": {"aggregation": "mean"}}
    defense = {"differential-privacy": "local", "target-epsilon": 1e-9}
    plain = {"name": "plain", "settings": {"instahide": {"method": "none"}}}
    methods = [plain, {"name": "hidden", "settings": {"defense": defense}}]
    study = {"title": "Out of reach", "base": base, "methods": methods}
    Path("study.toml").write_text(tomli_w.dumps(study))
    code, out, err = command("compare", "study.toml", "--plan", "--json")
    assert (code, out) == (2, "")
    assert "hidden: defense.target-epsilon = 1e-09 cannot be reached" in err
    # Nothing trains before: not even methods that could.
    code, _, err = command("compare", "study.toml", "--out", "studied")
    assert (code, "cannot be reached" in err) == (2, True)
    assert not list(Path("studied").rglob("metrics.jsonl"))


def test_pool_build_and_the_picture_of_a_pool(command):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Path("images").mkdir()
    Image.fromarray(noise).resize((240, 160)).save("images/noise.PNG")
    Path("images/broken.jpg").write_bytes(b"\xff\xd8")
    code, out, _ = command("pool", "build", "images", "--out", "pool")
    assert code == 0
    assert "2 images, 1 unreadable, 0 too small" in out
    assert "4 of 4 patches (100.0%)" in out
    assert "broken.jpg" in out
    code, out, _ = command("pool", "info", "pool", "--picture", "p.png")
    assert code == 0
    assert "more than 40 SIFT key points" in out
    with Image.open("p.png") as picture:
        assert picture.width > 4 * 32
    for arguments, expected in (
        (["build", "images", "--out", "pool"], "pool exists already"),
        (["build", "nowhere", "--out", "new"], "no such folder"),
        (["build", "images", "--out", "p.png/new"], "cannot write"),
        (["info", "pool", "--picture", "p.png"], "p.png exists already"),
    ):
        code, _, err = command("pool", *arguments)
        assert (code, expected in err) == (2, True), err


def test_encode_writes_encodings_and_only_on_request_the_key(command):
    arguments = ["encode", "mnist-5k", "--images", 30, "--picture", "p.png"]
    code, _, _ = command(*arguments, "--out", "e.npz")
    assert code == 0
    assert sorted(p.name for p in Path().iterdir()) == ["e.npz", "p.png"]
    with np.load("e.npz") as first:
        assert set(first.files) == {"encodings", "soft_targets"}
        assert first["encodings"].shape == (30, 1, 28, 28)
        assert first["soft_targets"].sum(axis=1).max() < 1
        without_seed = first["encodings"]
    command("encode", "mnist-5k", "--images", 30, "--out", "f.npz")
    with np.load("f.npz") as second:
        assert not np.array_equal(second["encodings"], without_seed)
    seeded = ["encode", "mnist-5k", "--images", 30, "--seed", 5]
    command(*seeded, "--out", "g.npz", "--key", "k.npz")
    command(*seeded, "--out", "h.npz")
    with np.load("g.npz") as g, np.load("h.npz") as h, np.load("k.npz") as key:
        np.testing.assert_array_equal(g["encodings"], h["encodings"])
        assert key["private_index"][:, 0].tolist() == list(range(30))
    code, _, err = command(*arguments, "--out", "e.npz")
    assert (code, "exists already" in err) == (2, True)


def test_evaluate_agrees_with_the_run_and_averages_encodings(command):
    command("run", *QUICK, "--out", "run")
    summary = json.loads(Path("run/summary.json").read_text())
    code, out, err = command("evaluate", "run")
    assert (code, "summary.json says" in err) == (0, False)
    assert f"accuracy {summary['final_accuracy']:.1%}" in out
    assert not Path("run/evaluation.json").exists()
    options = ["--encodings", 2, "--own-coefficient", 0.5, "--average", "logits"]
    code, out, _ = command("evaluate", "run", *options, "--seed", 9)
    assert code == 0
    written = json.loads(Path("run/evaluation.json").read_text())
    assert written["clean"]["accuracy"] == summary["final_accuracy"]
    assert written["clean"]["loss"] == pytest.approx(summary["final_loss"], rel=1e-5)
    encoded = written["encoded"]
    assert encoded["own_coefficient"] == 0.5
    assert encoded["encodings"] == 2
    assert encoded["average"] == "logits"
    assert encoded["seed"] == 9
    assert encoded["accuracy"] == encoded["accuracy_by_encodings"][1]
    assert f"{encoded['accuracy']:.1%}" in out
    assert Path("run/evaluation.png").read_bytes().startswith(b"\x89PNG")
    Path("run/summary.json").write_text('{"final_accuracy": 0.99}')
    code, _, err = command("evaluate", "run")
    assert (code, "summary.json says accuracy 0.99" in err) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing"], "nothing is not a run folder"),
        (["stopped"], "the run in stopped is not finished"),
        (["plain", "--encodings", 3], "leave --encodings out"),
        (["plain", "--average", "logits"], "give --encodings K too"),
    ],
)
def test_evaluate_explains_a_mistake_in_one_line(command, arguments, expected):
    quick = [*QUICK, "--set", "instahide.method=none", "--set", "train.rounds=1"]
    command("run", *quick, "--out", arguments[0])
    if arguments[0] == "nothing":
        Path("nothing/config.toml").unlink()
    if arguments[0] == "stopped":
        Path("stopped/summary.json").unlink()
    code, _, err = command("evaluate", *arguments)
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1


def start_process(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", "from instahide_fl.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_ctrl_c_says_how_to_continue(tmp_path):
    process = start_process(
        *("run", "--engine", "inline", "--set", "train.checkpoint-every=1"),
        *("--out", "run"),
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "checkpoint" / "state.safetensors").exists():
        assert time.monotonic() < deadline, process.kill()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "continue with instahide-fl run --resume run" in err
    assert "Traceback" not in err
