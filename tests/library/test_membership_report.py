"""The report's section on membership, made of a small study that really ran."""

from __future__ import annotations

import json

import pytest

from instahide_fl import load_study
from instahide_fl.compare.run_job import perform
from instahide_fl.report.membership import (
    membership_table,
    roc_curves,
    terminal_columns,
)
from instahide_fl.report.reports import report_of_study
from instahide_fl.report.variants import study_variants
from instahide_fl.study.folder import StudyFolder
from instahide_fl.study.plan import plan_runs
from instahide_fl.study.settings import StudyConfig

STUDY = """
title = "Who was trained on"

[base.data]
train-rows = "0:200"
[base.train]
rounds = 2
batch-size = 8
evaluate-every = 1
[base.partition]
num-clients = 3
[base.model]
name = "mlp"
width = 1
[base.record]
rounds = "1-2"
truth = true
holdout-share = 0.4

[[methods]]
name = "plain"
[methods.settings.instahide]
method = "none"

[[methods]]
name = "secure aggregation"
[methods.settings.instahide]
method = "none"
[methods.settings.secure-aggregation]
enabled = true

[[audits]]
name = "membership"
start = "training"
attacks = ["membership_updates"]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("membership") / "study"
    source = path.with_suffix(".toml")
    source.write_text(STUDY)
    study, folder = StudyConfig.from_toml(source), StudyFolder(path)
    runs = plan_runs(study, path)
    folder.open_for(source, runs)
    for run in runs:
        perform(path, run)
        assert folder.finished(run)
    folder.save(study, runs, {}, {})
    return path


def test_the_training_itself_is_attacked_as_whoever_sees_what_it_shows(made):
    plain, secure = study_variants(load_study(made))
    table = membership_table([plain, secure])
    assert list(table.frame["method"]) == [plain.marked_label, secure.marked_label]
    assert list(table.frame["adversary"]) == [
        *("honest-server", "secure-aggregation-server")
    ]
    [path] = made.glob("runs/plain-*/audits/*/attacks/membership_updates.json")
    figures = json.loads(path.read_text())["metrics"]["membership"]
    row = table.frame.iloc[0]
    assert row["AUC"] == figures["auc"]
    assert row["TPR at FPR 1%"] == figures["tpr_at_fpr"]["0.01"]
    assert row["held-out images"] == figures["non_members"]
    assert row["accuracy"] == plain.accuracy.mean
    shown = terminal_columns(table)
    assert "adversary" in shown
    assert "seeds" not in shown
    low, high = map(float, row["AUC, 95% interval"].split("-"))
    assert low < row["AUC"] < high


def test_the_report_has_a_section_with_table_and_curves(made):
    study = load_study(made)
    report = report_of_study(study)
    [section] = [part for part in report.shown if part.name == "membership"]
    table, drawing = section.items
    assert (table.name, drawing.name) == ("membership", "membership-roc")
    assert "<svg" in drawing.svg()
    assert roc_curves([]) is None
    assert membership_table([]) is None


def test_methods_of_a_study_hold_out_the_same_images(made):
    rows = [
        json.loads(path.read_text())["held_out"]["membership"]
        for path in made.glob("runs/*/partition.json")
    ]
    assert len(rows) == 2
    assert rows[0] == rows[1]
