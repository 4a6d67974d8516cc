"""The measurements for a GPU machine run with the library alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
pytestmark = pytest.mark.slow


def run_script(*arguments, path=""):
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(path)}
    command = ["sh", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_everything_is_measured_where_flower_and_ray_are_missing(tmp_path):
    for package in ("flwr", "ray"):
        stub = tmp_path / "path" / package / "__init__.py"
        stub.parent.mkdir(parents=True)
        stub.write_text(f"raise ImportError('{package} is not there')")
    process = run_script("--cpu", "--out", tmp_path, path=tmp_path / "path")
    assert process.returncode == 0, process.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["measured"] for row in rows} == {
        "steps, one client",
        "steps, all clients",
        "images encoded, k = 4",
        "images evaluated",
    }
    assert all(row["a second"] > 0 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_script_says_so():
    process = run_script()
    assert process.returncode == 2
    assert process.stdout.startswith("no GPU")
    assert not process.stderr
