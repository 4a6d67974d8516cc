"""Methods that are tuned: what trials are planned, what is chosen, and what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from instahide_fl import load_study
from instahide_fl.compare.progress_table import progress_table
from instahide_fl.compare.run_job import perform
from instahide_fl.errors import ConfigError, DivergenceError
from instahide_fl.report.reference import find_reference
from instahide_fl.report.reports import write_report
from instahide_fl.report.variants import study_variants
from instahide_fl.run_folder import SUMMARY
from instahide_fl.study.folder import StudyFolder
from instahide_fl.study.plan import plan_runs
from instahide_fl.study.plan_trials import plan_trials
from instahide_fl.study.settings import StudyConfig
from instahide_fl.study.trial_results import TrialResult, TunedVariant
from instahide_fl.study.tuning import values_in_words

PLAIN = {"name": "plain", "settings": {"instahide": {"method": "none"}}}
CROSS = {"name": "InstaHide", "settings": {"instahide": {"scope": "cross"}}}
RATES = {"server.learning-rate": [0.05, 0.1, 1e30]}
SMALL = {
    "data": {"train-rows": "0:200"},
    "partition": {"num-clients": 2},
    "model": {"name": "mlp", "width": 1},
    "train": {"rounds": 2, "batch-size": 16},
}


def study_of(tuning, methods=(PLAIN, CROSS), **tables):
    values = {"title": "t", "methods": [*methods], "tuning": tuning, **tables}
    return StudyConfig(**values)


def test_trials_differ_in_the_tuned_settings_only():
    both = {"train.batch-size": [8, 16], "server": {"learning-rate": [0.1, 0.2]}}
    study = study_of({"validation-share": 0.2, "seed": 7, "trials": both}, seeds=[1, 2])
    trials = plan_trials(study, Path("/"))
    assert [trial.folder for trial in trials] == [
        "tuning/plain/trial-1",
        "tuning/plain/trial-2",
        "tuning/instahide/trial-1",
        "tuning/instahide/trial-2",
    ]
    assert [trial.config.train.batch_size for trial in trials[:2]] == [8, 16]
    assert [trial.config.server_learning_rate for trial in trials[:2]] == [0.1, 0.2]
    chosen = {"plain": trials[1].tuned, "instahide": trials[2].tuned}
    runs = plan_runs(study, Path("/"), chosen)
    assert [run.config.server_learning_rate for run in runs] == [0.2, 0.2, 0.1, 0.1]
    both = [*trials, *runs]
    assert {planned.config.data.validation_share for planned in both} == {0.2}
    assert [planned.config.seed for planned in both] == [7] * 4 + [1, 2] * 2


def test_a_shorter_trial_has_the_same_schedule_in_short():
    train = {"rounds": 100, "warmup-rounds": 4, "schedule": "step"}
    base = {"train": {**train, "milestones": "50, 80"}}
    study = study_of({"rounds-share": 0.1, "trials": RATES}, base=base)
    short = plan_trials(study, Path("/"))[0].config.train
    assert (short.rounds, short.warmup_rounds) == (10, 1)
    assert short.milestones == "5, 8"
    whole = plan_runs(study, Path("/"))[0].config.train
    assert (whole.rounds, whole.milestones) == (100, "50, 80")


def test_every_value_of_an_axis_is_tuned_by_itself():
    axes = {"instahide.num-mixed": [2, 4]}
    study = study_of({"trials": RATES}, axes=axes)
    variants = dict.fromkeys(t.variant for t in plan_trials(study, Path("/")))
    assert [*variants] == ["plain", "instahide-num-mixed-2", "instahide-num-mixed-4"]


@pytest.mark.parametrize(
    ("tuning", "tables", "message"),
    [
        ({"trials": {"data.dataset": ["a", "b"]}}, {}, "which data.dataset is not"),
        ({"trials": {"seed": [1, 2]}}, {}, "which seed is not"),
        ({"trials": {"train.rounds": [1, 2]}}, {}, "which train.rounds is not"),
        ({"trials": {"server.learning-rate": []}}, {}, "server.learning-rate has none"),
        ({"trials": {"server.learning-rate": 0.1}}, {}, "tuning.trials must be"),
        ({"trials": {"server.rate": [1, 2]}}, {}, "unknown setting server.rate"),
        (
            {"trials": {"server.learning-rate": ["x", "y"]}},
            {},
            "method 'plain', server.learning-rate = \"x",
        ),
        (
            {"trials": {"server.learning-rate": [0.1, -1.0]}},
            {},
            "server.learning-rate = -1.0, .*must be greater than 0",
        ),
        (
            {"trials": {"server.learning-rate": [0.1, 0.1]}},
            {},
            "trials 1 and 2 are both server.learning-rate = 0.1",
        ),
        (
            {"trials": {**RATES, "train.batch-size": [8]}},
            {},
            "server.learning-rate has 3, train.batch-size has 1",
        ),
        (
            {"trials": {"server.learning-rate": [1], "server.learning_rate": [2]}},
            {},
            "server.learning-rate is twice",
        ),
        ({"trials": {"train.learning-rate": [1, 2]}}, {}, "tune server.learning-rate"),
        ({"validation-share": 0.0, "trials": RATES}, {}, "tuning.validation-share"),
        ({}, {}, "no method has trials"),
        (
            {"trials": RATES},
            {"methods": [PLAIN, {**CROSS, "trials": {"server.ema": [0.9]}}]},
            "same number of trials, .* got 'plain' 3, 'InstaHide' 1",
        ),
        (
            {"trials": RATES},
            {"base": {"data": {"validation-share": 0.5}}},
            "leave the latter out",
        ),
        (
            {"trials": {"instahide.method": ["none", "mixup"]}},
            {},
            "in the trials of method 'plain' and in the method's settings",
        ),
        (
            {"trials": {"train.batch-size": [8, 16]}},
            {"audits": [{"name": "a", "attacks": ["dlg"], "settings": {"x": 1}}]},
            "audit 'a' of method 'plain': unknown setting x",
        ),
        (None, {"methods": [{**PLAIN, "trials": RATES}]}, "need the table .tuning."),
        ({"trials": RATES}, {"reference": "x"}, "reference must be the name of a"),
    ],
)
def test_a_mistake_is_named_before_anything_trains(tuning, tables, message):
    with pytest.raises(ConfigError, match=message):
        plan_trials(study_of(tuning, **tables), Path("/"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A study of two methods: one with trials of which one diverges, one with one."""
    path = tmp_path_factory.mktemp("tuned") / "study"
    shorter = {**CROSS, "name": "Mixup", "trials": {"server.learning-rate": [0.1]}}
    shorter["settings"] = {"instahide": {"method": "mixup", "scope": "inside"}}
    tuning = {"validation-share": 0.2, "trials": RATES, "allow-unequal": True}
    study = study_of(tuning, [PLAIN, shorter], base=SMALL)
    source = path.with_suffix(".toml")
    source.write_text("title = 't'\n")
    folder, trials = StudyFolder(path), plan_trials(study, path)
    folder.open_for(source, trials)
    for trial in trials[:2]:
        perform(path, trial)
    assert [one.chosen for one in folder.tuned(study, trials, {})] == [None, None]
    with pytest.raises(DivergenceError):
        perform(path, trials[2])
    perform(path, trials[3])
    chosen = {one.name: one.chosen.tuned for one in folder.tuned(study, trials, {})}
    runs = plan_runs(study, path, chosen)
    for run in runs:
        perform(path, run)
    folder.save(study, runs, {}, {}, trials)
    return study, trials, path


def change_summaries(path, figure, values):
    """Put other figures into the summaries of the trials of the first method."""
    for number, value in enumerate(values, start=1):
        summary = path / "tuning" / "plain" / f"trial-{number}" / SUMMARY
        text = json.loads(summary.read_text())
        assert figure in text
        summary.write_text(json.dumps({**text, figure: value}))


@pytest.mark.parametrize(
    ("figure", "values", "chosen"),
    [
        ("validation_accuracy", (0.6, 0.5), 1),
        ("validation_accuracy", (0.5, 0.6), 2),
        ("validation_accuracy", (0.5, 0.5), 1),  # of equals, the first
        ("validation_accuracy", (0.0, 0.0), 1),  # better than the one that diverged
    ],
)
def test_the_best_on_validation_images_is_chosen(
    tuned, tmp_path, figure, values, chosen
):
    study, trials, made = tuned
    path = shutil.copytree(made, tmp_path / "study")
    change_summaries(path, figure, values)
    for other in ("final_accuracy", "best_accuracy", "best_validation_accuracy"):
        change_summaries(path, other, values[::-1])
    [plain, _] = StudyFolder(path).tuned(study, trials, {})
    states = [result.status for result in plain.results]
    assert states == ["finished", "finished", "diverged"]
    assert plain.chosen.trial == chosen


def test_test_images_have_no_part_in_the_choice(tuned, tmp_path):
    study, trials, made = tuned
    path = shutil.copytree(made, tmp_path / "study")
    before = [one.to_json({}) for one in StudyFolder(path).tuned(study, trials, {})]
    for figure in ("final_accuracy", "best_accuracy", "final_loss"):
        for values in ((0.0, 1.0), (1.0, 0.0)):
            change_summaries(path, figure, values)
            after = StudyFolder(path).tuned(study, trials, {})
            assert [one.to_json({}) for one in after] == before
    assert "test" not in json.dumps(before)


def test_the_table_of_trials_says_nothing_of_test_images(tuned, tmp_path):
    _, trials, made = tuned
    folder = StudyFolder(shutil.copytree(made, tmp_path / "study"))
    shown = []
    for trained in (True, False):
        change_summaries(folder.path, "trained", (trained, trained))
        table = progress_table(folder, trials, (), {})
        shown.append([list(column.cells) for column in table.columns])
    assert shown[0] == shown[1]


def test_a_report_can_be_of_the_round_that_was_best_on_validation_images(tuned):
    _, _, made = tuned
    study = study_of({"trials": RATES, "report": "best-validation"})
    assert study.tuning.figure == "best_validation_accuracy"
    read = load_study(made)
    read.description["tuning"]["report"] = "best-validation"
    variant = study_variants(read)[0]
    expected = variant.runs["test_accuracy_at_best_validation"].mean()
    assert variant.accuracy.mean == pytest.approx(expected)


def test_the_report_says_how_settings_were_chosen(tuned, tmp_path):
    path = shutil.copytree(tuned[2], tmp_path / "study")
    study = load_study(path)
    chosen = study.trials[study.trials["chosen"]].set_index("method")
    first = study.members[0].run.config
    assert first.server_learning_rate == chosen.loc["plain", "server.learning-rate"]
    text = write_report([path], None).read_text()
    table = pd.read_csv(path / "report" / "tuning.csv")
    assert list(table["method"]) == ["plain"] * 3 + ["Mixup"]
    assert table["outcome"][2] == "diverged"
    assert text.count("Tuned unequally: ") == 2  # in the verdict, and beside the trials
    assert "Trials: plain 3, Mixup 1." in text
    assert "Nothing was chosen on test images." in text
    methods = pd.read_csv(path / "report" / "methods.csv").set_index("method")
    ratio = methods["accuracy"] / methods.loc["plain", "accuracy"]
    assert methods["relative accuracy"].values == pytest.approx(ratio.values)


def test_a_choice_at_the_edge_of_what_was_tried_is_told(tuned, tmp_path):
    study, trials, made = tuned
    path = shutil.copytree(made, tmp_path / "study")
    change_summaries(path, "validation_accuracy", (0.9, 0.5))
    folder, runs = StudyFolder(path), plan_runs(study, tmp_path)
    [plain, single] = folder.tuned(study, trials, {})
    assert plain.on_edge == {"server.learning-rate": "smallest"}
    assert single.on_edge == {}  # nothing was varied
    folder.save(study, runs, {}, {}, trials)
    text = write_report([path], None).read_text()
    assert "plain: server.learning-rate = 0.05 is the smallest value tried" in text
    assert "chosen, at the edge" in text


def test_true_and_false_have_no_edge_and_are_written_as_in_settings_files():
    study = study_of({"trials": {"train.control-variates": [True, False]}}, [PLAIN])
    base = {"train": {"mode": "update", "momentum": 0.0}}
    trials = plan_trials(study.model_copy(update={"base": base}), Path("/"))
    results = [
        TrialResult(trial, "finished", accuracy, "")
        for trial, accuracy in zip(trials, (0.9, 0.5), strict=True)
    ]
    assert TunedVariant(results).on_edge == {}
    assert values_in_words(trials[0].tuned) == "train.control-variates = true"


def test_accuracy_is_compared_with_the_method_that_changes_nothing(tuned):
    study = load_study(tuned[2])
    variants = study_variants(study)
    assert find_reference(study, variants).method == "plain"
    assert find_reference(study, variants[1:]) is None
    study.description["reference"] = "Mixup"
    reference = find_reference(study, variants)
    plain, mixup = variants
    assert reference.relative(mixup).mean == 1
    ratio = plain.accuracy.mean / mixup.accuracy.mean
    assert reference.relative(plain).mean == pytest.approx(ratio)
