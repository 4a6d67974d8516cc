"""Runs where the environment and the working folder are not what one would wish."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from instahide_fl.run_folder import RunFolder
from tests.e2e.support import SMALL

# The installed command, which multiprocessing imports once more in its processes.
SCRIPT = """
from instahide_fl.cli import main
if __name__ == "__main__":
    main()
"""
NOBODY = "http://127.0.0.1:9"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
SHADOWED = ("random", "socket", "struct", "pickle", "queue", "torch", "numpy")
STUDY = """
title = "One run"
[base.data]
train-rows = "0:100"
[base.partition]
num-clients = 2
[base.train]
rounds = 1
[base.model]
width = 4
[[methods]]
name = "plain"
[methods.settings.instahide]
method = "none"
"""


def hostile(folder):
    """Return an environment, and a working folder with other modules in it."""
    working_folder = folder / "work"
    for package in ("instahide_fl", "clients", "server"):
        (working_folder / package).mkdir(parents=True)
        text = f"raise ImportError('{package} of the working folder')"
        (working_folder / package / "__init__.py").write_text(text)
    for module in SHADOWED:
        text = f"raise ImportError('{module} of the working folder')"
        (working_folder / f"{module}.py").write_text(text)
    temporary = folder / "é" / ("long-" * 24)
    temporary.mkdir(parents=True)
    variables = dict.fromkeys(PROXIES, NOBODY)
    variables |= {name.upper(): NOBODY for name in PROXIES}
    environment = {**os.environ, **variables, "TMPDIR": str(temporary)}
    environment.pop("PYTHONSAFEPATH", None)
    return environment, working_folder


def call(folder, *arguments):
    environment, working_folder = hostile(folder)
    script = folder / "bin" / "instahide-fl"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, script, *arguments],
        env=environment,
        cwd=working_folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return ended, working_folder


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ray", "flower"])
def test_a_run_needs_no_short_paths_no_proxy_and_no_empty_folder(tmp_path, engine):
    """TMPDIR is longer than a socket's path may be, and has an accented letter."""
    settings = {**SMALL, "train.rounds": 1, "resources.workers": 1}
    assignments = [f"--set={name}={value}" for name, value in settings.items()]
    ended, folder = call(
        tmp_path, "run", "--engine", engine, "--out", "run", *assignments
    )
    assert ended.returncode == 0, ended.stderr
    assert RunFolder(folder / "run").finished
    assert not list((tmp_path / "é").rglob("ihfl-*"))


@pytest.mark.slow
def test_processes_of_pool_build_import_nothing_from_the_working_folder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (160, 240, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(noise).save(tmp_path / "images" / "noise.png")
    arguments = (tmp_path / "images", "--out", tmp_path / "pool")
    ended, _ = call(tmp_path, "pool", "build", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert "4 of 4 patches" in ended.stdout


@pytest.mark.long
def test_processes_of_compare_import_nothing_from_the_working_folder(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    arguments = (tmp_path / "study.toml", "--out", tmp_path / "study")
    ended, _ = call(tmp_path, "compare", *arguments)
    assert ended.returncode == 0, ended.stderr
