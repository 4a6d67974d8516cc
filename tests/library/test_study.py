"""What runs a study consists of, and what its folder says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from instahide_fl.attacks.inverting_gradients import InvertingGradients
from instahide_fl.attacks.registry import ATTACKS
from instahide_fl.compare.run_job import attack_settings
from instahide_fl.config import Config
from instahide_fl.errors import ConfigError, OutputError
from instahide_fl.run_folder import SUMMARY, RunFolder
from instahide_fl.study.folder import AUDIT_FILE, StudyFolder
from instahide_fl.study.plan import plan_runs
from instahide_fl.study.settings import StudyConfig

PLAIN = {"name": "plain", "settings": {"instahide": {"method": "none"}}}
CROSS = {"name": "InstaHide cross", "settings": {"instahide": {"scope": "cross"}}}


def planned(**given):
    study = StudyConfig(**{"title": "t", "methods": [PLAIN, CROSS], **given})
    return plan_runs(study, Path("/"))


def test_every_method_runs_once_with_every_seed():
    runs = planned(seeds=[0, 7], base={"train": {"rounds": 5}})
    assert [run.name for run in runs] == [
        "plain-seed-0",
        "plain-seed-7",
        "instahide-cross-seed-0",
        "instahide-cross-seed-7",
    ]
    assert [run.config.seed for run in runs] == [0, 7, 0, 7]
    assert {run.config.train.rounds for run in runs} == {5}
    assert runs[0].config.instahide.method == "none"


def test_an_axis_varies_only_the_methods_that_it_makes_a_difference_to():
    runs = planned(
        axes={"instahide.num-mixed": [2, 4], "train.batch-size": [16, 32]}, seeds=[0]
    )
    plain = [dict(run.axes) for run in runs if run.method == "plain"]
    assert plain == [{"train.batch-size": 16}, {"train.batch-size": 32}]
    cross = [run for run in runs if run.method == "InstaHide cross"]
    assert len(cross) == 4
    assert cross[-1].config.instahide.num_mixed == 4
    assert cross[-1].config.train.batch_size == 32
    assert cross[-1].name == "instahide-cross-num-mixed-4-batch-size-32-seed-0"


def test_an_audit_is_recorded_with_the_methods_own_defence():
    audit = {
        "name": "batch 1",
        "attacks": ["first_layer"],
        "settings": {"train": {"batch-size": 1, "rounds": 2}},
        "seeds": 1,
    }
    first, second = planned(methods=[CROSS], seeds=[3, 4], audits=[audit])
    [(found, config)] = first.audits
    assert found.folder == "batch-1"
    assert config.train.batch_size == 1
    assert config.record.truth
    assert config.record.includes_round(2)
    assert config.resolved().instahide == first.config.instahide
    assert second.audits == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"axes": {"instahide.num-mixd": [2]}}, "did you mean instahide.num-mixed"),
        ({"axes": {"instahide.scope": ["inside"]}}, "contradicts the method 'InstaH"),
        ({"axes": {"seed": [1]}}, "axes: seed contradicts the list seeds"),
        ({"axes": {"train.rounds": []}}, "needs a list of different values"),
        (
            {"axes": {"instahide.num-mixed": [0]}},
            "method 'plain', instahide.num-mixed = 0",
        ),
        ({"base": {"train": {"round": 3}}}, "did you mean train.rounds"),
        ({"methods": [PLAIN, PLAIN]}, "have the same name"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"method": []}, "did you mean methods"),
        ({"audits": [{"name": "a", "attacks": []}]}, "audits.attacks must"),
        (
            {"audits": [{"name": "a", "attacks": ["dlg"], "methods": ["x"]}]},
            "is for the method 'x'",
        ),
        (
            {
                "audits": [
                    {"name": "a", "attacks": ["dlg"], "settings": {"train": {"x": 1}}}
                ]
            },
            "audit 'a' of method 'plain': unknown setting train.x",
        ),
        (
            {"audits": [{"name": "a", "attacks": ["dlg"], "start": "training"}]},
            r"training of method 'plain'.* set record.rounds and record.truth = true",
        ),
        (
            {
                "audits": [
                    {
                        "name": "a",
                        "attacks": ["dlg"],
                        "start": "training",
                        "settings": {"train": {"rounds": 1}},
                    }
                ]
            },
            "'a' attacks the training itself .* leave out settings",
        ),
    ],
)
def test_a_mistake_is_named(given, message):
    with pytest.raises(ConfigError, match=message):
        planned(**given)


def test_a_file_that_is_no_study_says_what_is_wrong(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("title = ")
    with pytest.raises(ConfigError, match=r"study\.toml is not valid TOML"):
        StudyConfig.from_toml(path)
    path.write_text("seeds = [0]")
    with pytest.raises(ConfigError, match="title is missing"):
        StudyConfig.from_toml(path)
    with pytest.raises(ConfigError, match="cannot read the study file"):
        StudyConfig.from_toml(tmp_path / "absent.toml")


def test_a_quick_study_takes_quick_settings_where_an_audit_states_none():
    audits = [
        {"name": "a", "attacks": ["inverting_gradients", "soft_labels"]},
        {
            "name": "b",
            "attacks": ["inverting_gradients"],
            "attack_settings": {"inverting_gradients": {"iterations": 7}},
        },
        {"name": "c", "attacks": ["inverting_gradients"], "effort": "full"},
    ]
    quick = InvertingGradients.quick
    expected = {
        "quick": [
            {"inverting_gradients": quick, "soft_labels": {}},
            {"inverting_gradients": {**quick, "iterations": 7}},
            {},
        ],
        "full": [{}, {"inverting_gradients": {"iterations": 7}}, {}],
    }
    for effort, settings in expected.items():
        run = planned(audits=audits, audit={"effort": effort})[0]
        assert [attack_settings(audit) for audit, _ in run.audits] == settings
    for attack in ATTACKS.values():
        attack(**attack.quick)  # which the attack has


def test_a_run_is_finished_with_its_last_audit(tmp_path):
    audit = {"name": "a", "attacks": ["dlg"]}
    [run] = planned(methods=[CROSS], audits=[audit])
    source = tmp_path / "study.toml"
    source.write_text("title = 't'")
    folder = StudyFolder(tmp_path / "out")
    folder.open_for(source, [run])
    trained = RunFolder.create(folder.run(run).path, run.config)
    trained.write_json(SUMMARY, {})
    assert not folder.finished(run)
    folder.audit(run, run.audits[0][0]).path.mkdir(parents=True)
    folder.audit(run, run.audits[0][0]).write_json(AUDIT_FILE, {"attacks": ["dlg"]})
    assert folder.finished(run)


def test_runs_made_with_other_settings_are_not_taken_for_this_study(tmp_path):
    [run] = planned(methods=[CROSS])
    source = tmp_path / "study.toml"
    source.write_text("title = 't'")
    folder = StudyFolder(tmp_path / "out")
    folder.open_for(source, [run])
    RunFolder.create(
        folder.run(run).path, run.config.with_values({"resources.workers": 7})
    )
    folder.open_for(source, [run])
    [changed] = planned(methods=[CROSS], base={"train": {"rounds": 9}})
    with pytest.raises(
        OutputError,
        match=r"made with train.rounds = 300, .* says train.rounds = 9 now: put it",
    ):
        folder.open_for(source, [changed])
    other = tmp_path / "other"
    RunFolder.create(other, Config())
    with pytest.raises(OutputError, match="holds no study"):
        StudyFolder(other).open_for(source, [run])
