"""All engines end at the same bytes, and none leaves anything behind."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from tests.e2e.support import (
    COMMAND,
    command_line,
    faulty_app,
    marked_processes,
    model_bytes,
    private_homes,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "other", ["flower", pytest.param("ray", marks=pytest.mark.long)]
)
def test_a_failing_client_changes_nothing_between_engines(tmp_path, other):
    """Neither the model nor what clients keep: one that fails keeps what it had."""
    app = faulty_app(tmp_path / "app")
    changes = {
        "train.clients-per-round": 0,
        "train.min-updates": 4,
        "resources.workers": 1,
        "train.evaluate-encodings": 2,
        "train.evaluate-every": 2,
    }
    models, figures = set(), []
    for engine in ("inline", other):
        done, folder = command_line(
            tmp_path / engine, engine, app, "2 3 raise", **changes
        )
        assert done.returncode == 0, done.stderr
        assert [row["failures"] for row in folder.metrics()] == [0, 1, 0]
        models.add(model_bytes(folder))
        names = ("test_accuracy", "test_loss", "test_accuracy_encoded")
        figures.append(
            [{name: row.get(name) for name in names} for row in folder.metrics()]
        )
        seen = (tmp_path / engine).with_suffix(".seen").read_text().splitlines()
        assert sorted(seen) == sorted(
            f"{number} {client} {number - (client == 3 and number == 3)}"
            for number in (1, 2, 3)
            for client in range(5)
        )
    assert len(models) == 1
    assert figures[0] == figures[1]


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ray", "flower"])
def test_ctrl_c_leaves_no_process_behind(tmp_path, engine):
    process = subprocess.Popen(
        [
            *(*COMMAND, "run", "--engine", engine, "--out", "run"),
            *("--set", "train.checkpoint-every=1", "--set", "train.rounds=100000"),
            "--set=resources.workers=1",
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 400
    while not (tmp_path / "run" / "checkpoint" / "state.safetensors").exists():
        assert time.monotonic() < deadline, process.kill()
        time.sleep(0.1)
    assert marked_processes()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "--resume run" in err
    assert not marked_processes()
    assert private_homes() == []
