"""The wheel: what somebody has who installs it and has no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from instahide_fl.deployment.app_hash import app_hash_of_folder
from instahide_fl.flower.app_files import app_root
from tests.e2e.support import COMMAND

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the folder that the wheel's content lies in, as in site-packages."""
    built = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    subprocess.run([*build, "--outdir", built, ROOT], check=True, capture_output=True)
    (path,) = built.glob("*.whl")
    unpacked = built / "site"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(unpacked)
    return unpacked


def run_in(folder, wheel, *arguments):
    """Call the command of the wheel in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_wheel_installs_one_name_and_carries_the_apps(wheel):
    names = {path.name for path in wheel.iterdir()}
    assert "instahide_fl" in names
    assert {name for name in names if not name.endswith(".dist-info")} == {
        "instahide_fl"
    }
    carried = wheel / "instahide_fl" / "app-files"
    assert (carried / "clients" / "app.py").is_file()
    assert (carried / "pyproject.toml").is_file()
    assert not [path for path in wheel.rglob("*") if "tests" in path.parts]


@pytest.mark.parametrize(
    "engine", ["inline", pytest.param("ray", marks=pytest.mark.long)]
)
def test_a_wheel_alone_simulates_in_an_empty_folder(engine, wheel, tmp_path):
    small = ["--set", "train.rounds=1", "--set", "partition.num-clients=2"]
    model = ["--set", "model.name=mlp", "--engine", engine]
    ended = run_in(tmp_path, wheel, "run", *small, *model)
    assert ended.returncode == 0, ended.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "summary.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_wheel_and_a_checkout_agree_on_the_hash_that_clients_pin(wheel, tmp_path):
    ended = run_in(tmp_path, wheel, "deploy", "code-hash")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == app_hash_of_folder(app_root())
