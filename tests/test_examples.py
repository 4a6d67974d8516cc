"""Every public name has an example, and it does what it shows."""

from __future__ import annotations

import doctest

import pytest

import instahide_fl
from instahide_fl.compare.run_job import perform
from instahide_fl.study.folder import StudyFolder
from instahide_fl.study.plan import plan_runs
from instahide_fl.study.settings import StudyConfig

NAMES = sorted(set(instahide_fl.__all__) - {"__version__"})
STUDY = """
title = "Digits"
seeds = [0]
audits = []

[base.train]
rounds = 1
[base.model]
name = "mlp"
width = 1

[[methods]]
name = "plain"
[methods.settings.instahide]
method = "none"
"""


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory):
    """A folder with what examples read: runs/digits and studies/digits."""
    place = tmp_path_factory.mktemp("examples")
    path = place / "studies" / "digits"
    source = place / "digits.toml"
    source.write_text(STUDY)
    study, folder = StudyConfig.from_toml(source), StudyFolder(path)
    (run,) = runs = plan_runs(study, path)
    folder.open_for(source, runs)
    perform(path, run)
    folder.save(study, runs, {}, {})
    (place / "runs").mkdir()
    (place / "runs" / "digits").symlink_to(path / "runs" / run.name)
    return place


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(name, readers_folder, monkeypatch):
    monkeypatch.chdir(readers_folder)
    documented = getattr(instahide_fl, name)
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(documented, name, globs={})
    assert "Example:" in documented.__doc__, f"{name} has no example"
    assert example.examples, f"the example of {name} has no line that begins with >>>"
    report = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    outcome = doctest.DocTestRunner(optionflags=flags).run(example, out=report.append)
    assert outcome.failed == 0, "".join(report)
