"""Frames and reports of studies and runs, made of a small study that really ran."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from instahide_fl import load_run, load_study
from instahide_fl.audit.scoring.verdict import FROM_WORST, NO_VERDICT
from instahide_fl.compare.run_job import perform
from instahide_fl.errors import InstaHideError, OutputError
from instahide_fl.report.data_table import DataTable
from instahide_fl.report.drawing import COLOURS
from instahide_fl.report.leakage import dominated
from instahide_fl.report.page import Report, Section, save_report
from instahide_fl.report.reports import report_of_study, write_report
from instahide_fl.report.study_tables import FAILED_REFERENCE, by_attack, guarantee
from instahide_fl.report.variants import study_variants
from instahide_fl.report.wording import VERDICTS_IN_WORDS
from instahide_fl.study.folder import StudyFolder
from instahide_fl.study.plan import plan_runs
from instahide_fl.study.settings import StudyConfig

STUDY = """
title = "A small <study>"
question = "What does Mixup cost?"
seeds = [0, 1]

[base.data]
train-rows = "0:64"
[base.train]
rounds = 2
batch-size = 8
evaluate-every = 1
[base.partition]
num-clients = 2
[base.model]
name = "mlp"
width = 1

[axes]
"instahide.num-mixed" = [2, 4]

[[methods]]
name = "plain"
[methods.settings.instahide]
method = "none"

[[methods]]
name = "Mixup"
[methods.settings.instahide]
method = "mixup"
scope = "inside"

[[methods]]
name = "lost"
axes = []
[methods.settings.pool]
source = "nowhere"

[[audits]]
name = "batch 1"
attacks = ["first_layer", "batch_statistics"]
[audits.settings.train]
rounds = 1
batch-size = 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a study with six runs that finished and two that failed."""
    path = tmp_path_factory.mktemp("report") / "study"
    source = path.with_suffix(".toml")
    source.write_text(STUDY)
    study, folder = StudyConfig.from_toml(source), StudyFolder(path)
    runs = plan_runs(study, path)
    folder.open_for(source, runs)
    failures = {}
    for run in runs:
        try:
            perform(path, run)
        except InstaHideError as error:
            failures[run.name] = str(error)
    folder.save(study, runs, failures, {})
    return path


@pytest.fixture
def study(made, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "study")


def change_attacks(folder, **values):
    for path in folder.rglob("attacks/first_layer.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_frames_tell_runs_methods_axes_and_seeds_apart(made):
    study = load_study(made)
    assert list(study.runs["method"].unique()) == ["plain", "Mixup", "lost"]
    mixup = study.runs[study.runs["method"] == "Mixup"]
    assert sorted(mixup["instahide.num-mixed"]) == [2, 2, 4, 4]
    assert study.runs.set_index("name").loc["lost-seed-0", "status"] == "failed"
    assert "nowhere" in study.runs.set_index("name").loc["lost-seed-0", "reason"]
    assert len(study.rounds) == 6 * 2
    assert set(study.rounds["seed"]) == {0, 1}
    assert len(study.attacks) == 6
    plain = study.attacks[study.attacks["method"] == "plain"]
    assert (plain["private_ssim_mean"] > 0.99).all()
    assert plain["control_succeeds"].all()

    run = load_run(made / "runs" / "plain-seed-1")
    assert run.config.seed == 1
    assert list(run.rounds["round"]) == [1, 2]
    assert list(run.attacks["audit"]) == ["batch 1"]
    assert [skipped.attack for skipped in run.skipped_attacks] == ["batch_statistics"]


def test_other_folders_are_refused(made, tmp_path):
    with pytest.raises(OutputError, match="use load_study"):
        load_run(made)
    with pytest.raises(OutputError, match="use load_run"):
        load_study(made / "runs" / "plain-seed-0")
    with pytest.raises(OutputError, match="not a run folder"):
        load_run(tmp_path)
    with pytest.raises(OutputError, match="neither a study folder"):
        write_report([tmp_path], None)
    with pytest.raises(OutputError, match="report on it alone"):
        write_report([made, made / "runs" / "plain-seed-0"], None)
    with pytest.raises(OutputError, match=r"must end in \.html"):
        write_report([made], tmp_path / "report")


def test_a_damaged_attack_is_named(study):
    change_attacks(study, metrics=None)
    with pytest.raises(OutputError, match=r"first_layer\.json is damaged"):
        load_study(study)


def test_dominated_points_are_worse_in_one_and_better_in_none():
    points = [(0.9, 1.0), (0.8, 0.2), (0.7, 0.5), (0.8, 0.2), (0.8, 0.3)]
    assert dominated(points) == [False, False, True, False, True]


def test_leakage_is_summed_up_over_seeds(made):
    study = load_study(made)
    two_mixed = next(
        variant
        for variant in study_variants(study)
        if variant.label == "Mixup, num-mixed 2"
    )
    leak = two_mixed.worst_leakage(ordinary=True)
    rows = study.attacks[study.attacks["instahide.num-mixed"] == 2]
    expected = rows["private_ssim_mean"]
    assert leak.similarity.count == 2
    assert leak.similarity.mean == pytest.approx(expected.mean())
    assert leak.similarity.deviation == pytest.approx(np.std(expected, ddof=1))
    assert leak.best == rows["private_ssim_best"].max()


def test_an_attack_that_fails_its_control_counts_for_nothing(study):
    change_attacks(study, verdict=NO_VERDICT, control={"succeeds": False})
    read = load_study(study)
    variants = study_variants(read)
    assert all(variant.worst_leakage(ordinary=False) is None for variant in variants)
    assert set(by_attack(variants).frame["verdict"]) == {FAILED_REFERENCE}
    report = report_of_study(read)
    assert "cannot be judged" in dict(report.verdict)["plain"]


def test_methods_show_the_same_images_of_a_seed(made):
    kept = {
        path.parents[3].name: np.load(path)
        for path in made.rglob("attacks/first_layer.npz")
    }
    assert len(kept) == 6
    plain, mixed = kept["plain-seed-0"], kept["mixup-num-mixed-4-seed-0"]
    assert (plain["sources"] == mixed["sources"]).all()
    assert (plain["sources"] != kept["plain-seed-1"]["sources"]).any()
    grid = next(one for one in report_of_study(load_study(made)).drawings()
                if one.name == "reconstructions-1")  # fmt: skip
    assert "from plain, Mixup, num-mixed 2, Mixup, num-mixed 4" in grid.alternative


def test_a_guarantee_is_that_of_the_weakest_run():
    row = {"epsilon": [2.0, 3.0], "delta": [1e-5] * 2, "privacy_unit": ["image"] * 2}
    assert guarantee(pd.DataFrame(row)) == "(3, 1e-05)-DP per image"
    assert guarantee(pd.DataFrame({"epsilon": [2.0, None]})) == "no formal guarantee"
    assert guarantee(pd.DataFrame({"name": ["a"]})) == "no formal guarantee"


def test_the_page_of_a_study_needs_nothing_else_and_says_what_failed(study):
    page = write_report([study], None)
    text = page.read_text()
    assert page == study / "report.html"
    assert "A small &lt;study&gt;" in text
    assert "nowhere" in text
    assert "BatchNorm" in text  # why batch_statistics was left out
    assert "broken as an encryption scheme" in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)
    assert re.findall(r"\bsecure\b(?![ -]aggregation)", text) == []
    assert "nan" not in re.sub(r"<[^>]*>", " ", text).lower().split()
    ids = re.findall(
        r'\bid="([^"]+)"', re.sub(r"<defs>.*?</defs>", "", text, flags=re.S)
    )
    assert len(ids) == len(set(ids))
    for figure in re.findall(r"<svg[^>]*>", text):
        assert re.search(r'role="img" aria-label="[^"]{20,}"', figure)
    for name in ("trade-off", "accuracy-by-round", "sweep-num-mixed"):
        assert (study / "report" / f"{name}.png").is_file()
    methods = pd.read_csv(study / "report" / "methods.csv")
    assert list(methods["method"])[:2] == ["plain", "Mixup, num-mixed 2"]
    assert r"\toprule" in (study / "report" / "methods.tex").read_text()


def test_runs_are_reported_alone_and_side_by_side(study, tmp_path):
    plain = study / "runs" / "plain-seed-0"
    mixed = study / "runs" / "mixup-num-mixed-4-seed-0"
    alone = write_report([plain], None)
    assert alone == plain / "report.html"
    assert "data:image/png;base64" in alone.read_text()
    both = write_report([plain, mixed], tmp_path / "both.html").read_text()
    differing = both[both.index("Settings that differ") : both.index("<details>")]
    assert "instahide.method" in differing
    assert "train.rounds" not in differing


def test_a_browser_shows_the_figures(study, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    page = write_report([study], None)
    picture = tmp_path / "page.png"
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --enable-logging=stderr "
        "--disable-background-networking --disable-component-update --disable-sync "
        f"--user-data-dir={tmp_path / 'profile'} --window-size=1000,3000 "
        f"--screenshot={picture}"
    )
    command = [browser, *options.split(), page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    for colour in COLOURS[:2]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == wanted).all(axis=1).sum() > 50


def test_what_an_earlier_report_left_goes_and_nothing_else(tmp_path):
    def report(*names):
        tables = [DataTable(name, "", "", pd.DataFrame({"x": [1]})) for name in names]
        return Report("", "", (), "", (Section("s", "S", (), tables),))

    folder = tmp_path / "report"
    save_report(report("accuracy", "leakage"), tmp_path / "report.html", folder)
    (folder / "notes.csv").write_text("mine")
    save_report(report("accuracy"), tmp_path / "report.html", folder)
    left = {path.name for path in folder.iterdir()}
    assert left == {"accuracy.csv", "accuracy.tex", "contents.txt", "notes.csv"}


def mark_trained(folder, trained):
    """Let the summaries of a method's runs say whether its network learned anything."""
    for path in folder.glob("runs/*/summary.json"):
        method = next(name for name in trained if path.parent.name.startswith(name))
        figures = {"trained": trained[method], "chance_bound": 0.15}
        path.write_text(json.dumps({**json.loads(path.read_text()), **figures}))


def test_a_method_at_chance_is_marked_and_not_ranked(study):
    mark_trained(study, {"plain": False, "mixup": True})
    read = load_study(study)
    variants = study_variants(read)
    assert [variant.is_ranked for variant in variants[:3]] == [False, True, True]
    report = report_of_study(read)
    methods = [method for method, _ in report.verdict if method]
    assert methods[-1] == "plain"
    verdict = dict(report.verdict)
    assert "chance reaches 15.0%" in verdict["plain"]
    assert "Accuracy" in verdict["Mixup, num-mixed 2"]
    text = write_report([study], None).read_text()
    assert "plain: the network has learned nothing" in text
    assert "Not ranked (not trained: chance): plain." in text
    table = pd.read_csv(study / "report" / "methods.csv").set_index("method")
    assert table.loc["plain", "training"] == "not trained: chance"
    assert pd.isna(table.loc["Mixup, num-mixed 2", "training"])


def test_summaries_of_older_versions_are_ranked_as_before(study):
    for path in study.glob("runs/*/summary.json"):
        summary = json.loads(path.read_text())
        for name in ("trained", "chance_bound"):
            del summary[name]
        path.write_text(json.dumps(summary))
    text = write_report([study], None).read_text()
    assert "not trained" not in text
    assert "training" not in pd.read_csv(study / "report" / "methods.csv")


def test_every_verdict_has_words():
    assert {*FROM_WORST, ""} <= VERDICTS_IN_WORDS.keys()
