"""`instahide-fl compare`: whole studies, interrupted ones, and runs that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from instahide_fl.compare.run_job import perform
from instahide_fl.engine.inline import run_inline
from instahide_fl.errors import DivergenceError
from instahide_fl.run_folder import RunFolder
from instahide_fl.study.folder import StudyFolder
from instahide_fl.study.plan import plan_runs
from instahide_fl.study.plan_trials import plan_trials
from instahide_fl.study.settings import StudyConfig
from tests.e2e.support import COMMAND, model_bytes, processes

pytestmark = pytest.mark.slow

STUDY = """
title = "A small study"
seeds = [0]

[base.train]
rounds = {rounds}
batch-size = 8
checkpoint-every = 1
evaluate-every = {rounds}
[base.partition]
num-clients = 2
[base.model]
name = "mlp"
width = 1

[[methods]]
name = "plain"
[methods.settings.instahide]
method = "none"

[[methods]]
name = "InstaHide"
[methods.settings.pool]
source = "{pool}"

[[audits]]
name = "batch 1"
attacks = ["first_layer", "batch_statistics"]
[audits.settings.train]
rounds = 1
batch-size = 1
"""


def study_file(folder, rounds=2, pool="photos"):
    path = folder / "study.toml"
    path.write_text(STUDY.format(rounds=rounds, pool=pool))
    return path


def compare(*arguments):
    return subprocess.run(
        [*COMMAND, "compare", *map(str, arguments)], capture_output=True, text=True
    )


def states(out):
    return {
        run["name"]: run["status"]
        for run in json.loads((out / "study.json").read_text())["runs"]
    }


def test_a_killed_study_loses_at_most_the_runs_in_progress(tmp_path):
    path, out = study_file(tmp_path, rounds=3000), tmp_path / "out"
    before = set(processes())  # what other tests of this process left waiting
    command = [*COMMAND, "compare", str(path), "--out", str(out), "--jobs", "2"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    metrics = out / "runs" / "plain-seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    deadline = time.monotonic() + 60
    while set(processes()) - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not set(processes()) - before
    done = max(len(one.read_text().splitlines()) for one in out.rglob("metrics.jsonl"))
    # The same study, cut short so that the test does not take long.
    for config in out.glob("runs/*/config.toml"):
        text = config.read_text()
        text = text.replace("rounds = 3000", f"rounds = {done + 3}")
        text = text.replace("evaluate-every = 3000", f"evaluate-every = {done + 3}")
        config.write_text(text)
    path = study_file(tmp_path, rounds=done + 3)
    refused = compare(path, "--out", out)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    finished = compare(path, "--out", out, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert set(states(out).values()) == {"finished"}
    rounds = [json.loads(line)["round"] for line in metrics.read_text().splitlines()]
    assert rounds == list(range(1, done + 4))
    folder = RunFolder(out / "runs" / "plain-seed-0")
    uninterrupted = run_in_one_go(folder.config(), tmp_path / "uninterrupted")
    assert model_bytes(folder) == model_bytes(uninterrupted)

    audit = out / "runs" / "instahide-seed-0" / "audits" / "batch-1"
    result = json.loads((audit / "attacks" / "first_layer.json").read_text())
    assert result["metrics"]["encoding"]["folded"]["ssim"]["mean"] > 0.99
    left_out = json.loads((audit / "audit.json").read_text())["left_out"]
    assert "BatchNorm" in left_out["batch_statistics"]

    before = {path: os.stat(path).st_mtime_ns for path in out.rglob("*.json")}
    again = compare(path, "--out", out)
    assert again.returncode == 0
    assert "all 2 runs are finished" in again.stdout
    assert again.stdout.splitlines()[-1] == str(out / "report.html")
    assert (out / "report.html").is_file()
    assert before == {path: os.stat(path).st_mtime_ns for path in out.rglob("*.json")}


def run_in_one_go(config, path):
    config = config.with_values({"output.folder": str(path), "output.resume": False})
    folder = RunFolder.create(path, config)
    run_inline(config, folder)
    return folder


TUNED = """
[tuning]
validation-share = 0.2
[tuning.trials]
"server.learning-rate" = [0.1, 1e30]
"""


@pytest.mark.long
def test_a_study_interrupted_in_its_trials_repeats_none_of_them(tmp_path):
    path, out = study_file(tmp_path), tmp_path / "out"
    path.write_text(path.read_text().replace("[[methods]]", f"{TUNED}[[methods]]", 1))
    study, folder = StudyConfig.from_toml(path), StudyFolder(out)
    first, diverging, *others = plan_trials(study, tmp_path)
    folder.open_for(path, [first, diverging, *others])
    perform(out, first)
    with pytest.raises(DivergenceError):
        perform(out, diverging)
    folder.save(study, plan_runs(study, tmp_path), {}, {}, [first, diverging, *others])
    trials = sorted((out / "tuning" / "plain").rglob("*.json"))
    before = {path: os.stat(path).st_mtime_ns for path in trials}

    refused = compare(path, "--out", out)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    finished = compare(path, "--out", out, "--resume", "--jobs", "1")
    assert finished.returncode == 0, finished.stderr
    assert "1/2 instahide/trial-1 finished" in finished.stdout
    assert "2/2 instahide/trial-2 diverged: " in finished.stdout
    assert before == {path: os.stat(path).st_mtime_ns for path in trials}
    assert set(states(out).values()) == {"finished"}
    tuning = json.loads((out / "study.json").read_text())["tuning"]
    for variant in tuning["variants"]:
        assert variant["num_trials"] == 2
        assert variant["chosen_settings"] == {"server.learning-rate": 0.1}
        reached = [trial["status"] for trial in variant["trials"]]
        assert reached == ["finished", "diverged"]
    assert "all 4 trials and 2 runs are finished" in compare(path, "--out", out).stdout


@pytest.mark.long
def test_a_share_that_cannot_be_held_out_is_refused_before_anything_trains(tmp_path):
    path, out = study_file(tmp_path), tmp_path / "out"
    tuned = f'[base.data]\ntrain-rows = "0:20"\n{TUNED}[[methods]]'
    path.write_text(path.read_text().replace("[[methods]]", tuned, 1))
    refused = compare(path, "--out", out)
    assert refused.returncode == 2
    assert "data.validation-share = 0.2 holds out none of" in refused.stderr
    assert not list(out.rglob("metrics.jsonl"))


@pytest.mark.long
def test_a_run_that_fails_is_told_and_the_others_are_finished(tmp_path):
    path = study_file(tmp_path, pool=tmp_path / "no-pool")
    ended = compare(path, "--out", tmp_path / "out")
    assert ended.returncode == 1
    assert "1 of 2 runs failed" in ended.stderr
    assert ended.stdout.count("test images of 10 classes") == 1  # of both runs' data
    found = json.loads((tmp_path / "out" / "study.json").read_text())["runs"]
    assert [run["status"] for run in found] == ["finished", "failed"]
    assert "no-pool" in found[-1]["reason"]


@pytest.mark.long
def test_a_study_of_which_every_run_fails_has_a_report_that_says_why(tmp_path):
    path = study_file(tmp_path)
    missing = f'[base.data]\ndataset = "hf:{tmp_path / "no-data"}"\n'
    path.write_text(path.read_text().replace("[base.train]", f"{missing}[base.train]"))
    ended = compare(path, "--out", tmp_path / "out")
    assert ended.returncode == 1
    assert "every run failed" in ended.stderr
    report = (tmp_path / "out" / "report.html").read_text()
    assert ended.stdout.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    assert report.count("no-data") >= 2


EMPTY_SAMPLES = """
title = "Empty samples"
seeds = [1]

[base.train]
rounds = 1
[base.partition]
num-clients = 1
[base.model]
name = "mlp"
width = 1
[base.instahide]
method = "none"

[[methods]]
name = "DP-SGD"
[methods.settings.defense]
differential-privacy = "dp-sgd"

[[audits]]
name = "batch 1"
attacks = ["first_layer"]
[audits.settings.train]
batch-size = 1
"""


@pytest.mark.long
def test_an_audit_in_which_nobody_trained_is_left_out_with_the_reason(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(EMPTY_SAMPLES)
    ended = compare(path, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert "1/1 dp-sgd-seed-1 finished" in ended.stdout
    audit = tmp_path / "out" / "runs" / "dp-sgd-seed-1" / "audits" / "batch-1"
    left_out = json.loads((audit / "audit.json").read_text())["left_out"]
    assert "trained on any image" in left_out["first_layer"]
